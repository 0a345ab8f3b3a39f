//! Golden files: every executor reproduces what another implementation computed.

use std::path::Path;

use infini_train::check::{Report, check_file};

fn reports(prefix: &str) -> Vec<(String, Report)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden");
    let mut names: Vec<String> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| n.starts_with(prefix) && n.ends_with(".safetensors"))
        .collect();
    names.sort();
    names.into_iter().map(|n| (n.clone(), check_file(&dir.join(n)).unwrap())).collect()
}

fn assert_passed(reports: &[(String, Report)]) {
    for (name, report) in reports {
        for row in &report.rows {
            for t in &row.tensors {
                assert!(
                    t.passed(),
                    "{name}: {}: {} is off by {:.1e}, allowed {:.1e}",
                    row.executor,
                    t.tensor,
                    t.error,
                    t.bound
                );
            }
        }
    }
}

#[test]
fn operations() {
    let reports = reports("op_");
    assert_eq!(reports.len(), 30);
    assert_passed(&reports);
}

#[test]
fn models() {
    let reports = reports("model_");
    assert_eq!(reports.len(), 3);
    assert!(reports.iter().all(|(_, r)| r.rows.len() >= 4));
    assert_passed(&reports);
}
