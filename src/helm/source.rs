//! Where a chart comes from.

use std::net::SocketAddr;

use crate::chart::Spec;

/// What k3s' manifests have instead of the server's address in a chart's URL.
const KUBERNETES_API: &str = "%{KUBERNETES_API}%";
/// What a repository is called in Helm's configuration, and a chart of it by that.
pub(crate) const REPOSITORY: &str = "repository";

/// Where a chart comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// `spec.chartContent`: the archive itself.
    Content,
    /// The archive's address.
    Archive(String),
    /// The archive's address on this server, whose certificate is the cluster's own.
    OwnArchive(String),
    /// An OCI registry, `oci://…`.
    Registry(String),
    /// A chart repository.
    Repository { url: String, chart: String },
}

impl Source {
    /// What `spec` names, with `api` for the address of this server.
    ///
    /// # Errors
    /// What is wrong with it, as a user reads it.
    pub(crate) fn of(spec: &Spec, api: SocketAddr) -> Result<Self, String> {
        let (chart, repo) = (spec.chart.trim(), spec.repo.trim());
        if !spec.chart_content.is_empty() {
            return Ok(Self::Content);
        }
        if chart.contains(KUBERNETES_API) {
            return Ok(Self::OwnArchive(chart.replace(KUBERNETES_API, &api.to_string())));
        }
        if chart.starts_with("oci://") {
            return Ok(Self::Registry(chart.to_owned()));
        }
        if is_http(chart) {
            return Ok(Self::Archive(chart.to_owned()));
        }
        // Files of the server are nobody's business: the API's users may not be its administrators.
        if chart.starts_with(['/', '.', '-']) || chart.contains("://") {
            return Err(format!(
                "spec.chart {chart:?} is no chart: give an https:// or oci:// URL, or a name and its repository in spec.repo"
            ));
        }
        match repo {
            "" => Err(format!("spec.chart {chart:?} is a name: say in spec.repo in which repository it is")),
            repo if is_http(repo) => Ok(Self::Repository { url: repo.to_owned(), chart: chart.to_owned() }),
            repo if repo.starts_with("oci://") => Ok(Self::Registry(format!("{}/{chart}", repo.trim_end_matches('/')))),
            repo => Err(format!("spec.repo {repo:?} is no repository: give an https:// or oci:// URL")),
        }
    }

    /// What Helm calls the chart; `archive` is the file that holds `spec.chartContent`.
    pub(crate) fn reference(&self, archive: &str) -> String {
        match self {
            Self::Content => archive.to_owned(),
            Self::Archive(url) | Self::OwnArchive(url) | Self::Registry(url) => url.clone(),
            Self::Repository { chart, .. } => format!("{REPOSITORY}/{chart}"),
        }
    }

    /// Whether `spec.version` chooses among several.
    pub(crate) fn has_versions(&self) -> bool {
        matches!(self, Self::Registry(_) | Self::Repository { .. })
    }

    /// As people read it.
    pub(crate) fn describe(&self, version: &str) -> String {
        let version =
            if version.is_empty() { "the latest stable version".to_owned() } else { format!("version {version}") };
        match self {
            Self::Content => "spec.chartContent".to_owned(),
            Self::Archive(url) | Self::OwnArchive(url) => url.clone(),
            Self::Registry(url) => format!("{version} of {url}"),
            Self::Repository { url, chart } => format!("{version} of {chart} in the repository {url}"),
        }
    }
}

fn is_http(url: &str) -> bool {
    url.starts_with("https://") || url.starts_with("http://")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(chart: &str, repo: &str) -> Result<Source, String> {
        let spec = Spec { chart: chart.into(), repo: repo.into(), ..Spec::default() };
        Source::of(&spec, "127.0.0.1:6443".parse().unwrap())
    }

    #[test]
    fn charts_come_from_archives_registries_and_repositories() {
        let own = of("https://%{KUBERNETES_API}%/static/charts/traefik.tgz", "").unwrap();
        assert_eq!(own, Source::OwnArchive("https://127.0.0.1:6443/static/charts/traefik.tgz".into()));
        assert_eq!(of("https://charts.lan/app.tgz", ""), Ok(Source::Archive("https://charts.lan/app.tgz".into())));
        assert_eq!(
            of("oci://registry.lan/charts/app", ""),
            Ok(Source::Registry("oci://registry.lan/charts/app".into()))
        );
        assert_eq!(
            of("app", "oci://registry.lan/charts/"),
            Ok(Source::Registry("oci://registry.lan/charts/app".into()))
        );
        let repository = of("app", "https://charts.lan").unwrap();
        assert_eq!(repository.reference("chart.tgz"), "repository/app");
        assert_eq!(repository.describe("1.2"), "version 1.2 of app in the repository https://charts.lan");
        let content = Spec { chart_content: "YQ==".into(), chart: "app".into(), ..Spec::default() };
        assert_eq!(Source::of(&content, "[::1]:6443".parse().unwrap()), Ok(Source::Content));
    }

    #[test]
    fn files_of_the_server_and_options_are_no_charts() {
        for chart in ["/var/lib/rancher/k3s/server", "./app", "../app", "--post-renderer=x", "file:///etc", "git://x"] {
            assert!(of(chart, "https://charts.lan").unwrap_err().contains("is no chart"), "{chart}");
        }
        assert!(of("app", "").unwrap_err().contains("in spec.repo"));
        assert!(of("app", "/srv/charts").unwrap_err().contains("is no repository"));
    }
}
