//! The names that Kubernetes accepts, as its API machinery checks them.

/// Lower-case letters, digits and inner dashes, at most 63 of them (RFC 1123).
pub(crate) fn is_dns_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    is_bounded(text, 63, inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// DNS labels with dots between them, at most 253 characters (RFC 1123).
pub fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_label)
}

/// What a certificate may name beside addresses: a host, whose case does not matter, or `*.` and a domain.
pub(crate) fn is_certificate_name(text: &str) -> bool {
    is_dns_subdomain(&text.strip_prefix("*.").unwrap_or(text).to_lowercase())
}

/// The key of a label or taint: `name` or `prefix/name`.
pub(crate) fn is_qualified_name(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => is_dns_subdomain(prefix) && !name.is_empty() && is_label_value(name),
        None => !text.is_empty() && is_label_value(text),
    }
}

/// The value of a label or taint: empty, or at most 63 letters, digits and inner `-`, `_`, `.`.
pub(crate) fn is_label_value(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let edge = |c: char| c.is_ascii_alphanumeric();
    text.is_empty() || (is_bounded(text, 63, inner) && text.starts_with(edge) && text.ends_with(edge))
}

/// Whether kubelet refuses to give its own node this label: those of Kubernetes' own domains are for it and for
/// administrators, but for a few.
pub(crate) fn is_forbidden_to_kubelet(key: &str) -> bool {
    let Some((domain, _)) = key.split_once('/') else { return false };
    let within = |parent: &str| domain == parent || domain.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.'));
    let kubernetes = within("kubernetes.io") || within("k8s.io");
    let open = within("kubelet.kubernetes.io") || within("node.kubernetes.io");
    kubernetes && !open && !KUBELET_LABELS.contains(&key)
}

fn is_bounded(text: &str, longest: usize, allowed: impl Fn(u8) -> bool) -> bool {
    !text.is_empty() && text.len() <= longest && text.bytes().all(allowed)
}

const KUBELET_LABELS: &[&str] = &[
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_kubernetes_checks_them() {
        assert!(is_dns_subdomain("node-1.example.com"));
        for wrong in ["", "-a", "a-", "A", "a..b", "a_b", &"a".repeat(64)] {
            assert!(!is_dns_subdomain(wrong), "{wrong:?}");
        }
        assert!(is_qualified_name("example.com/Tier_1"));
        assert!(is_qualified_name("tier"));
        for wrong in ["", "/tier", "example.com/", "a/b/c", "-tier", "ti er"] {
            assert!(!is_qualified_name(wrong), "{wrong:?}");
        }
        assert!(is_label_value("") && is_label_value("v1.2_x") && !is_label_value("a b") && !is_label_value("a-"));
        assert!(is_certificate_name("K3s.Example.com") && is_certificate_name("*.example.com"));
        assert!(!is_certificate_name("https://example.com") && !is_certificate_name("*"));
    }

    #[test]
    fn kubelet_may_not_give_itself_a_role() {
        for key in ["node-role.kubernetes.io/worker", "kubernetes.io/x", "k8s.io/x", "x.k8s.io/y"] {
            assert!(is_forbidden_to_kubelet(key), "{key}");
        }
        for key in
            ["kubernetes.io/arch", "node.kubernetes.io/pool", "x.node.kubernetes.io/y", "notkubernetes.io/x", "a"]
        {
            assert!(!is_forbidden_to_kubelet(key), "{key}");
        }
    }
}
