//! Durations as Go's flags take them: `5s`, `500ms`, `1h30m`.

use std::time::Duration;

/// Reads hours, minutes, seconds and milliseconds, the larger first or not; `0` alone needs no unit.
pub(super) fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || "write a duration such as 5s, 500ms or 1h30m".to_owned();
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total = (!text.is_empty()).then_some(Duration::ZERO).ok_or_else(wrong)?;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(digits);
        let unit = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let millis = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(wrong()),
        };
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let part = number.checked_mul(millis).map(Duration::from_millis);
        total = part.and_then(|part| total.checked_add(part)).ok_or_else(wrong)?;
        rest = tail;
    }
    Ok(total)
}

/// The largest unit of it, as kubectl shows ages: `45s`, `5m`, `23h`, `3d`, `2y`.
pub(super) fn short(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds, seconds / 60, seconds / 3600, seconds / 86_400) {
        (seconds @ ..60, ..) => format!("{seconds}s"),
        (_, minutes @ ..60, ..) => format!("{minutes}m"),
        (_, _, hours @ ..24, _) => format!("{hours}h"),
        (.., days @ ..365) => format!("{days}d"),
        (.., days) => format!("{}y", days / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_written_as_in_go() {
        for (text, seconds) in [("0", 0), ("5s", 5), ("1m30s", 90), ("24h0m0s", 86_400)] {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(parse("500ms"), Ok(Duration::from_millis(500)));
        for bad in ["", "5", "s", "5 s", "5d", "-5s", "99999999999999999999h"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn they_are_shown_by_their_largest_unit() {
        let shown = [(0, "0s"), (59, "59s"), (60, "1m"), (7199, "1h"), (86_400, "1d"), (365 * 86_400, "1y")];
        for (seconds, text) in shown {
            assert_eq!(short(Duration::from_secs(seconds)), text);
        }
    }
}
