//! Memory of this process, as the system counts it.

/// Resident bytes now; None where the system does not tell (other than Linux).
pub fn current() -> Option<u64> {
    field("VmRSS:")
}

/// Most bytes that were ever resident; None where the system does not tell.
pub fn peak() -> Option<u64> {
    field("VmHWM:")
}

/// A size of `/proc/self/status`, which is in KiB.
fn field(name: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix(name))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn what_is_touched_is_counted() {
        let before = peak().unwrap();
        // seen by nobody it would not be made
        let block = std::hint::black_box(vec![1u8; 64 << 20]);
        let now = current().unwrap();
        assert!(now > 64 << 20, "{now}");
        assert!(peak().unwrap() >= before.max(now.min(64 << 20)));
        assert_eq!(block[block.len() / 2], 1);
    }
}
