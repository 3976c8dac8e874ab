//! Sizes on the command line.

use crate::error::{Result, usage};

/// SIZE as given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// A bare number: filesystem blocks.
    Blocks(u64),
    /// With a suffix: bytes.
    Bytes(u64),
}

/// Reads SIZE: a number of blocks, or with `s` (sectors of 512 bytes), `k`, `m`, `g`, `t`, `p` a size.
///
/// # Errors
/// [`crate::MkfsError::Usage`].
pub fn parse_size(text: &str) -> Result<Size> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let suffix = text[digits.len()..].to_ascii_lowercase();
    let Ok(number) = digits.parse::<u64>() else {
        return usage(format!("bad size '{text}': give blocks, or a number with k, m, g or t"));
    };
    let shift = match suffix.as_str() {
        "" => return Ok(Size::Blocks(number)),
        "s" => 9,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        "p" | "pb" | "pib" => 50,
        _ => return usage(format!("bad size '{text}': unknown suffix '{suffix}', use k, m, g or t")),
    };
    match number.checked_mul(1 << shift) {
        Some(bytes) if bytes <= i64::MAX as u64 => Ok(Size::Bytes(bytes)),
        _ => usage(format!("bad size '{text}': too large")),
    }
}

/// A number of bytes with an optional suffix, as options like `-I` and `orphan_file_size=` take it.
///
/// # Errors
/// [`crate::MkfsError::Usage`].
pub fn parse_bytes(text: &str) -> Result<u64> {
    Ok(match parse_size(text)? {
        Size::Blocks(n) | Size::Bytes(n) => n,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("100").unwrap(), Size::Blocks(100));
        assert_eq!(parse_size("2s").unwrap(), Size::Bytes(1024));
        assert_eq!(parse_size("3K").unwrap(), Size::Bytes(3072));
        assert_eq!(parse_size("20t").unwrap(), Size::Bytes(20 << 40));
        for bad in ["", "x", "5q", "-1", "99999999999t", "k"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
