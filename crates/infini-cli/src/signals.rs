//! Ctrl-C and SIGTERM: the first asks a command to save and stop, the second ends it at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// A flag that the first signal raises.
#[derive(Clone, Debug)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Takes over both signals for the rest of the process.
    pub fn install() -> std::io::Result<Self> {
        let raised = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // registered first, so that it sees the flag as the signal before left it
            flag::register_conditional_shutdown(signal, 1, raised.clone())?;
            flag::register(signal, raised.clone())?;
        }
        Ok(Interrupt(raised))
    }

    /// Whether a signal came.
    pub fn raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// The flag, for those who know nothing of signals.
    pub fn flag(&self) -> Arc<AtomicBool> {
        self.0.clone()
    }
}
