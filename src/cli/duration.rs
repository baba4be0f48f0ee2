//! Spans of time on the command line: `90s`, `1h30m`, `30d`; a bare number means seconds.

use std::time::Duration;

/// Parses a span of time.
pub fn parse(text: &str) -> Result<Duration, String> {
    let mut total = Duration::ZERO;
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err("is empty; write for example 90s, 1h or 30d".to_owned());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let number: u64 = rest[..digits].parse().map_err(|_| format!("expected a whole number at {rest:?}"))?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = &rest[..letters];
        if unit.is_empty() && digits != text.trim().len() {
            return Err(format!("the number {number} has no unit (ms, s, m, h, d, w)"));
        }
        total = total.checked_add(span(number, unit)?).ok_or_else(|| "is too long".to_owned())?;
        rest = &rest[letters..];
    }
    Ok(total)
}

/// Parses a span of time, in whole seconds.
pub fn parse_seconds(text: &str) -> Result<u32, String> {
    u32::try_from(parse(text)?.as_secs()).map_err(|_| "is too long".to_owned())
}

fn span(number: u64, unit: &str) -> Result<Duration, String> {
    let seconds = match unit {
        "ms" => return Ok(Duration::from_millis(number)),
        "" | "s" => 1,
        "m" | "min" => 60,
        "h" => 3_600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return Err(format!("unknown unit {unit:?} (ms, s, m, h, d, w)")),
    };
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(|| "is too long".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read() {
        let cases = [("90s", 90), ("1h", 3_600), ("30d", 2_592_000), ("1h30m", 5_400), ("15", 15), (" 2w ", 1_209_600)];
        for (text, seconds) in cases {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(parse("1500ms"), Ok(Duration::from_millis(1_500)));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", " ", "h", "1x", "-1s", "1h30", "1.5h", "99999999999999999999s", "18446744073709551615w", "é"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
