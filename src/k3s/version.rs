//! What this program calls itself.

/// The Kubernetes it supervises. Tools recognise the layout of k3s by `+k3s`; `docs/adr/0003-version.md` says why it is there.
pub(crate) const KUBERNETES: &str = "v1.36.3+k3s1";

/// The text of `k3s --version`.
pub(crate) fn text() -> String {
    format!("k3s version {KUBERNETES}\nk3s-rs version {}", env!("CARGO_PKG_VERSION"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_that_of_the_pinned_components() {
        let pinned = include_str!("../../nix/components/kube/go.mod")
            .lines()
            .find_map(|line| line.trim().trim_start_matches("require ").strip_prefix("k8s.io/kubernetes "))
            .unwrap();
        assert_eq!(KUBERNETES.strip_suffix("+k3s1"), Some(pinned));
    }
}
