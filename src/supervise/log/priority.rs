//! How grave a line is, by what its writer put into it.

/// syslog's severities, as far as components have them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Priority {
    Critical = 2,
    Error = 3,
    Warning = 4,
    Info = 6,
    Debug = 7,
}

impl Priority {
    /// klog's header (`E1121 11:47:16…`: Kubernetes), logfmt's `level=error` (containerd), JSON's `"level":"error"` (etcd, CoreDNS) and
    /// `"severity":"error"` (kine), and the ways a Go program dies. Everything else is information.
    pub(super) fn of(line: &[u8]) -> Self {
        // The level stands near the start, and messages may quote others.
        let head = &line[..line.len().min(256)];
        Self::of_klog(head)
            .or_else(|| Self::of_field(head, b"level="))
            .or_else(|| Self::of_field(head, b"\"level\":"))
            .or_else(|| Self::of_severity(line))
            .or_else(|| Self::of_crash(head))
            .unwrap_or(Self::Info)
    }

    fn of_klog(head: &[u8]) -> Option<Self> {
        let [letter, date @ ..] = head else { return None };
        if date.len() < 5 || !date[..4].iter().all(u8::is_ascii_digit) || date[4] != b' ' {
            return None;
        }
        match letter {
            b'I' => Some(Self::Info),
            b'W' => Some(Self::Warning),
            b'E' => Some(Self::Error),
            b'F' => Some(Self::Critical),
            _ => None,
        }
    }

    /// kine's fields come by their names: after the message there are only this one and the time. A quote in the message has a `\\`.
    fn of_severity(line: &[u8]) -> Option<Self> {
        let tail = &line[line.len().saturating_sub(128)..];
        if line.starts_with(b"{") { Self::of_field(tail, b"\"severity\":") } else { None }
    }

    fn of_field(head: &[u8], key: &[u8]) -> Option<Self> {
        let start = head.windows(key.len()).position(|window| window == key)? + key.len();
        let word = head[start..].trim_ascii_start();
        let word = word.strip_prefix(b"\"").unwrap_or(word);
        let end = word.iter().position(|byte| !byte.is_ascii_alphabetic()).unwrap_or(word.len());
        match word[..end].to_ascii_lowercase().as_slice() {
            b"trace" | b"debug" => Some(Self::Debug),
            b"info" => Some(Self::Info),
            b"warn" | b"warning" => Some(Self::Warning),
            b"error" => Some(Self::Error),
            b"fatal" | b"panic" | b"dpanic" => Some(Self::Critical),
            _ => None,
        }
    }

    fn of_crash(head: &[u8]) -> Option<Self> {
        if head.starts_with(b"panic: ") || head.starts_with(b"fatal error: ") {
            return Some(Self::Critical);
        }
        // What cobra prints before the usage.
        head.starts_with(b"Error: ").then_some(Self::Error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_component_has_its_way() {
        let long = format!(
            "{{\"message\":\"{} \\\"severity\\\":\\\"info\\\"\",\"severity\":\"error\",\"time\":\"2026\"}}",
            "x".repeat(500)
        );
        let cases: [(&str, Priority); 15] = [
            (&long, Priority::Error),
            ("I1121 11:47:16.123456   12345 server.go:150] \"Version info\"", Priority::Info),
            ("W1121 11:47:16.123456       1 logging.go:55] level=error is quoted", Priority::Warning),
            ("E1121 11:47:16.123456       1 run.go:72] \"command failed\"", Priority::Error),
            ("F1121 11:47:16.123456       1 main.go:1] no way on", Priority::Critical),
            ("time=\"2026-11-21T11:47:16Z\" level=warning msg=\"failed to load plugin\"", Priority::Warning),
            ("time=2026-11-21T11:47:16Z level=DEBUG msg=x", Priority::Debug),
            ("{\"level\":\"fatal\",\"ts\":\"2026-11-21\",\"msg\":\"x\"}", Priority::Critical),
            ("{\"ts\":1, \"level\": \"error\", \"msg\":\"x\"}", Priority::Error),
            ("panic: runtime error: index out of range", Priority::Critical),
            ("Error: unknown flag: --no-such-flag", Priority::Error),
            ("Every good line", Priority::Info),
            ("I am no klog header", Priority::Info),
            ("level=unheard-of", Priority::Info),
            ("", Priority::Info),
        ];
        for (line, priority) in cases {
            assert_eq!(Priority::of(line.as_bytes()), priority, "{line}");
        }
    }
}
