//! Run-time choice of the instruction set.
//!
//! A kernel body is written once, as plain loops over `[f32; 16]`-sized chunks, and compiled three
//! times by [`simd!`](crate::simd!): for AVX-512, for AVX2 + FMA, and for the build's baseline
//! (NEON on aarch64). The choice is made per call from one atomic. `INFINI_SIMD=portable|avx2|avx512`
//! forces a path, so that tests cover each.
//!
//! Bodies use `f32::mul_add`, one instruction in every path but the x86-64 baseline, where it is a call
//! into libm: that path is for correctness on machines older than 2013, not for speed.

use std::sync::atomic::{AtomicU8, Ordering};

/// An instruction set that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// The build's baseline.
    Portable = 1,
    /// AVX2 and FMA.
    Avx2 = 2,
    /// AVX-512 F, DQ, BW, VL.
    Avx512 = 3,
}

impl Level {
    /// Its name in `INFINI_SIMD`.
    pub fn name(self) -> &'static str {
        match self {
            Level::Portable => "portable",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
        }
    }

    /// The levels this machine can run, weakest first.
    pub fn available() -> Vec<Level> {
        [Level::Portable, Level::Avx2, Level::Avx512].into_iter().filter(|l| *l <= best()).collect()
    }
}

static CURRENT: AtomicU8 = AtomicU8::new(0);

/// The best level of this machine.
pub fn best() -> Level {
    #[cfg(target_arch = "x86_64")]
    {
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        if avx2
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
        {
            return Level::Avx512;
        }
        if avx2 {
            return Level::Avx2;
        }
    }
    Level::Portable
}

/// The level in force: the one set by [`force`], else by `INFINI_SIMD`, else the machine's best.
///
/// # Panics
/// If `INFINI_SIMD` names no level, or one that this machine lacks.
#[inline]
pub fn level() -> Level {
    match CURRENT.load(Ordering::Relaxed) {
        1 => Level::Portable,
        2 => Level::Avx2,
        3 => Level::Avx512,
        _ => start(),
    }
}

#[cold]
fn start() -> Level {
    let level = match std::env::var("INFINI_SIMD") {
        Err(_) => best(),
        Ok(name) => {
            let known = [Level::Portable, Level::Avx2, Level::Avx512];
            let Some(l) = known.into_iter().find(|l| l.name() == name) else {
                panic!("INFINI_SIMD={name}: expected portable, avx2 or avx512");
            };
            assert!(l <= best(), "INFINI_SIMD={name}: this machine has {} at most", best().name());
            l
        }
    };
    CURRENT.store(level as u8, Ordering::Relaxed);
    level
}

/// Forces a level for the whole process, `None` returns to the default. For tests and benchmarks:
/// callers that compare levels hold a lock of their own.
///
/// # Panics
/// If this machine lacks the level.
pub fn force(level: Option<Level>) {
    if let Some(l) = level {
        assert!(l <= best(), "{} is not available here", l.name());
    }
    CURRENT.store(level.map_or(0, |l| l as u8), Ordering::Relaxed);
}

/// Compiles each function for every [`Level`] and dispatches at run time.
///
/// Functions called inside must be `#[inline(always)]` to be compiled for the level too.
#[macro_export]
macro_rules! simd {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident($($a:ident: $t:ty),* $(,)?) $(-> $r:ty)? $body:block)*) => { $(
        $(#[$meta])*
        $vis fn $name($($a: $t),*) $(-> $r)? {
            #[inline(always)]
            fn body($($a: $t),*) $(-> $r)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")]
            fn avx512($($a: $t),*) $(-> $r)? { body($($a),*) }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($a: $t),*) $(-> $r)? { body($($a),*) }
            match $crate::simd::level() {
                // SAFETY: `level` returns only what `best` found this machine to have.
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Level::Avx512 => unsafe { avx512($($a),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Level::Avx2 => unsafe { avx2($($a),*) },
                _ => body($($a),*),
            }
        }
    )* };
}
