//! What a counting memory makes of its candidates, against the f64 reference at every SIMD level.

mod common;

use common::Random;
use infini_kernels::naive;
use infini_kernels::simd::{Level, force};
use infini_kernels::tally::{Network, exps, raise, spread};

#[test]
fn candidates_are_judged_as_the_reference_does() {
    let wide = |x: &[f32]| -> Vec<f64> { x.iter().map(|x| f64::from(*x)).collect() };
    for level in Level::available() {
        force(Some(level));
        for (n, f, h) in [(1, 1, 1), (15, 6, 16), (16, 5, 3), (47, 7, 20), (160, 6, 16)] {
            let mut r = Random(n as u64);
            let mut draw = |len: usize| -> Vec<f32> { (0..len).map(|_| r.normal() as f32).collect() };
            let (features, weight, bias, output, logits) = (draw(f * n), draw(f * h), draw(h), draw(h), draw(n));
            let net = Network { weight: &weight, bias: &bias, output: &output, shift: 0.3, limit: 4.0 };
            let mut raises = vec![f32::NAN; n];
            raise(&features, net, &mut raises);
            for (i, got) in raises.iter().enumerate() {
                let x: Vec<f64> = (0..f).map(|j| f64::from(features[j * n + i])).collect();
                let expected =
                    naive::tally::raise(&x, &wide(&weight), &wide(&bias), &wide(&output), 0.3f32.into(), 4.0);
                assert!((f64::from(*got) - expected).abs() < 1e-4, "{level:?}, {n}: {got}, not {expected}");
            }
            let (sum, entropy) = naive::tally::spread(&wide(&logits));
            let got = spread(&logits);
            assert!((f64::from(got.0) - sum).abs() < 1e-5 && (f64::from(got.1) - entropy).abs() < 1e-5, "{got:?}");
            let mut e = logits.clone();
            exps(&mut e);
            assert!(
                e.iter().zip(wide(&logits)).all(|(e, l)| (f64::from(*e) - l.exp()).abs() < 1e-6 * l.exp().max(1.0))
            );
        }
    }
    force(None);
    assert_eq!(spread(&[0.0, f32::NEG_INFINITY]), (0.0, 0.0), "what cannot come has no part in the entropy");
}
