//! TensorBoard event files with scalars, nothing else: length-framed records with masked CRC-32C
//! around hand-coded protocol buffers.

use std::io::{self, Write};

/// The name of a run's event file; TensorBoard looks for `tfevents`.
pub const FILE: &str = "events.out.tfevents.infini";

/// Writes the record that opens every event file.
///
/// # Errors
/// The writer's.
pub fn header(out: &mut impl Write, wall_time: f64) -> io::Result<()> {
    let mut event = Vec::new();
    double(&mut event, 1, wall_time);
    bytes(&mut event, 3, b"brain.Event:2");
    record(out, &event)
}

/// Writes one event with these scalars.
///
/// # Errors
/// The writer's.
pub fn scalars(out: &mut impl Write, wall_time: f64, step: u64, values: &[(String, f64)]) -> io::Result<()> {
    let mut summary = Vec::new();
    for (tag, x) in values {
        let mut value = Vec::new();
        bytes(&mut value, 1, tag.as_bytes());
        key(&mut value, 2, 5);
        value.extend((*x as f32).to_le_bytes());
        bytes(&mut summary, 1, &value);
    }
    let mut event = Vec::new();
    double(&mut event, 1, wall_time);
    key(&mut event, 2, 0);
    varint(&mut event, step);
    bytes(&mut event, 5, &summary);
    record(out, &event)
}

fn record(out: &mut impl Write, data: &[u8]) -> io::Result<()> {
    let length = (data.len() as u64).to_le_bytes();
    out.write_all(&length)?;
    out.write_all(&masked_crc(&length).to_le_bytes())?;
    out.write_all(data)?;
    out.write_all(&masked_crc(data).to_le_bytes())
}

fn key(out: &mut Vec<u8>, field: u64, wire: u64) {
    varint(out, field << 3 | wire);
}

fn varint(out: &mut Vec<u8>, mut x: u64) {
    while x >= 0x80 {
        out.push(x as u8 | 0x80);
        x >>= 7;
    }
    out.push(x as u8);
}

fn double(out: &mut Vec<u8>, field: u64, x: f64) {
    key(out, field, 1);
    out.extend(x.to_le_bytes());
}

fn bytes(out: &mut Vec<u8>, field: u64, data: &[u8]) {
    key(out, field, 2);
    varint(out, data.len() as u64);
    out.extend(data);
}

/// CRC-32C, rotated and shifted so that a checksum of data with checksums stays sound.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn crc32c(data: &[u8]) -> u32 {
    !data.iter().fold(!0, |crc: u32, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| c >> 1 ^ (0x82f6_3b78 & (c & 1).wrapping_neg()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_of_the_standard_check_string() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_record_is_framed_and_encoded() {
        let mut out = Vec::new();
        scalars(&mut out, 1.0, 300, &[("loss".into(), 2.5)]).unwrap();
        let n = u64::from_le_bytes(out[..8].try_into().unwrap()) as usize;
        assert_eq!(out.len(), 8 + 4 + n + 4);
        let body = &out[12..12 + n];
        let expected: Vec<u8> = [
            &[0x09][..],
            &1f64.to_le_bytes(),
            &[0x10, 0xac, 0x02], // step 300
            &[0x2a, 13, 0x0a, 11, 0x0a, 4],
            b"loss",
            &[0x15],
            &2.5f32.to_le_bytes(),
        ]
        .concat();
        assert_eq!(body, expected);
        assert_eq!(out[12 + n..], masked_crc(body).to_le_bytes());
    }
}
