//! A version of the system, in the order in which systemd-boot prefers what it can start.

use std::{cmp::Ordering, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Bytes of a version: with what is around it, it has to be the name of a file on FAT.
const LONGEST: usize = 64;

/// The version of an image, ordered as UAPI.10 ("Version Format Specification") has it: `2~rc1 < 2 < 2-1 < 2^post1 < 2.1 < 10`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Version(String);

/// What is no version.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no version: use letters, digits, and any of .-~^, {LONGEST} at most")]
pub struct NotAVersion(String);

impl Version {
    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Version {
    type Err = NotAVersion;

    fn from_str(text: &str) -> Result<Self, NotAVersion> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b".-~^".contains(&byte);
        let begins = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if begins && text.len() <= LONGEST && text.bytes().all(fits) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NotAVersion(text.chars().take(LONGEST + 1).collect()))
        }
    }
}

impl TryFrom<String> for Version {
    type Error = NotAVersion;

    fn try_from(text: String) -> Result<Self, NotAVersion> {
        text.parse()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        // Of those that are equal by the specification, as 1 and 01, systemd-boot goes by the names.
        by_segments(self.0.as_bytes(), other.0.as_bytes()).then_with(|| self.0.cmp(&other.0))
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Separators in the order in which they are looked for. One that only one side has there makes that side the older one.
const BEFORE_THE_END: [u8; 1] = *b"~";
const BEHIND_THE_END: [u8; 3] = *b"-^.";

fn by_segments(mut a: &[u8], mut b: &[u8]) -> Ordering {
    loop {
        let order = by_separators(&BEFORE_THE_END, &mut a, &mut b);
        if order.is_ne() {
            return order;
        }
        if a.is_empty() || b.is_empty() {
            return a.len().cmp(&b.len());
        }
        let order = by_separators(&BEHIND_THE_END, &mut a, &mut b).then_with(|| by_segment(&mut a, &mut b));
        if order.is_ne() {
            return order;
        }
    }
}

fn by_separators(separators: &[u8], a: &mut &[u8], b: &mut &[u8]) -> Ordering {
    for separator in separators {
        match (a.strip_prefix(&[*separator]), b.strip_prefix(&[*separator])) {
            (None, None) => {}
            (Some(_), None) => return Ordering::Less,
            (None, Some(_)) => return Ordering::Greater,
            (Some(rest_of_a), Some(rest_of_b)) => (*a, *b) = (rest_of_a, rest_of_b),
        }
    }
    Ordering::Equal
}

/// Numbers by their value, letters by the alphabet; a number is newer than letters.
fn by_segment(a: &mut &[u8], b: &mut &[u8]) -> Ordering {
    let is_digit = |text: &[u8]| text.first().is_some_and(u8::is_ascii_digit);
    if !is_digit(a) && !is_digit(b) {
        return split(a, u8::is_ascii_alphabetic).cmp(split(b, u8::is_ascii_alphabetic));
    }
    let (a, b) = (split(a, u8::is_ascii_digit), split(b, u8::is_ascii_digit));
    let (significant_a, significant_b) = (without_zeros(a), without_zeros(b));
    (!a.is_empty())
        .cmp(&!b.is_empty())
        .then_with(|| significant_a.len().cmp(&significant_b.len()))
        .then_with(|| significant_a.cmp(significant_b))
}

/// Takes what is of one kind from the beginning of `text`.
fn split<'a>(text: &mut &'a [u8], is_of_it: impl Fn(&u8) -> bool) -> &'a [u8] {
    let end = text.iter().position(|byte| !is_of_it(byte)).unwrap_or(text.len());
    let (segment, rest) = text.split_at(end);
    *text = rest;
    segment
}

fn without_zeros(digits: &[u8]) -> &[u8] {
    let zeros = digits.iter().take_while(|digit| **digit == b'0').count();
    &digits[zeros..]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        text.parse().expect(text)
    }

    #[test]
    fn versions_are_ordered_as_the_boot_loader_orders_them() {
        // The example of the specification, and what releases are called.
        let ascending = [
            "122.1",
            "123~rc1-1",
            "123",
            "123-a",
            "123-a.1",
            "123-1",
            "123-1.1",
            "123^post1",
            "123.a-1",
            "123.1-1",
            "123a-1",
            "124-1",
        ];
        for (index, older) in ascending.iter().enumerate() {
            for newer in &ascending[index + 1..] {
                assert!(version(older) < version(newer), "{older} < {newer}");
                assert!(version(newer) > version(older), "{newer} > {older}");
            }
        }
        assert!(version("0.9.0") < version("0.10.0"));
        assert!(version("1.0.0-rc.2") > version("1.0.0"), "a candidate is written with a tilde");
        assert!(version("1.0.0~rc.2") < version("1.0.0"));
        assert_ne!(version("1").cmp(&version("01")), Ordering::Equal);
    }

    #[test]
    fn what_would_not_be_a_name_of_a_file_is_no_version() {
        for bad in ["", "1+3", "1_2", "../1", ".1", "1 2", "ü", &"1".repeat(65)] {
            assert!(bad.parse::<Version>().is_err(), "{bad}");
        }
        assert_eq!(
            "1+3".parse::<Version>().unwrap_err().to_string(),
            r#""1+3" is no version: use letters, digits, and any of .-~^, 64 at most"#
        );
    }
}
