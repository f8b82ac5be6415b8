//! What Helm is told: the files of its home, its environment and its arguments. Pure.

use std::{ffi::OsString, path::Path, time::Duration};

use serde_json::json;

use crate::{
    chart::ServerSide,
    decision::Step,
    release::HASH,
    source::{REPOSITORY, Source},
    wanted::{Access, Login, Target, Wanted},
};

/// The files of a home, by their names in it; Helm's working directory is its home.
const ARCHIVE: &str = "./chart.tgz";
const AUTHORITIES: &str = "ca.pem";
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const REPOSITORIES: &str = "repositories.yaml";
const REGISTRIES: &str = "registries.json";

/// As whom Helm asks the API. It is told apart in audit logs from the server, whose certificate it shows.
const USER: &str = "system:k3s-helm";
const GROUP: &str = "system:masters";
/// How many requests a run makes of the API, after the first hundred.
const REQUESTS_PER_SECOND: &str = "100";

/// A file of a home.
pub(crate) type File = (String, Vec<u8>);

/// The files that installing and upgrading need; `own_authority` is that of this server's certificate.
pub(crate) fn files(wanted: &Wanted, own_authority: &[u8]) -> Vec<File> {
    let mut files: Vec<File> = wanted.values.iter().map(|file| (file.name.clone(), file.content.clone())).collect();
    files.extend(wanted.set.iter().enumerate().filter_map(|(index, setting)| setting.file(index)));
    let mut add = |name: &str, content: Vec<u8>| files.push((name.to_owned(), content));
    let access = &wanted.access;
    if wanted.source == Source::Content {
        add(ARCHIVE, wanted.content.clone());
    }
    if has_authorities(wanted) {
        let own: &[u8] = if is_own(wanted) { own_authority } else { &[] };
        add(AUTHORITIES, [&*access.authorities, own].join(&b'\n'));
    }
    if let Some(Login::Certificate { certificate, key }) = &access.login {
        add(CERTIFICATE, certificate.clone());
        add(KEY, key.clone());
    }
    if let Some(registries) = &access.registries {
        add(REGISTRIES, registries.clone());
    }
    if let Source::Repository { url, .. } = &wanted.source {
        add(REPOSITORIES, repositories(url, access).into_bytes());
    }
    files
}

/// The repository, with what one shows to it: passwords are on no command line.
fn repositories(url: &str, access: &Access) -> String {
    let (username, password) = match &access.login {
        Some(Login::Basic { username, password }) => (&**username, &**password),
        _ => ("", ""),
    };
    let (certificate, key) = match &access.login {
        Some(Login::Certificate { .. }) => (CERTIFICATE, KEY),
        _ => ("", ""),
    };
    let authorities = if access.authorities.is_empty() { "" } else { AUTHORITIES };
    let repository = json!({
        "name": REPOSITORY,
        "url": url,
        "username": username,
        "password": password,
        "certFile": certificate,
        "keyFile": key,
        "caFile": authorities,
        "insecure_skip_tls_verify": access.insecure_skip_tls_verify,
        "pass_credentials_all": access.pass_credentials,
    });
    // JSON is YAML.
    json!({"apiVersion": "v1", "repositories": [repository]}).to_string()
}

fn is_own(wanted: &Wanted) -> bool {
    matches!(wanted.source, Source::OwnArchive(_))
}

fn has_authorities(wanted: &Wanted) -> bool {
    is_own(wanted) || !wanted.access.authorities.is_empty()
}

/// The environment of each run: everything of Helm's in `home`, and the API by `kubeconfig`.
pub(crate) fn environment(home: &Path, kubeconfig: &Path, target: &Target) -> Vec<(&'static str, OsString)> {
    let at = |name: &str| OsString::from(home.join(name));
    vec![
        ("HOME", home.into()),
        ("TMPDIR", home.into()),
        ("KUBECONFIG", kubeconfig.into()),
        ("HELM_KUBEASUSER", USER.into()),
        ("HELM_KUBEASGROUPS", GROUP.into()),
        ("HELM_DRIVER", target.driver.as_str().into()),
        // Five a second by default: of a chart with thousands of objects an hour.
        ("HELM_QPS", REQUESTS_PER_SECOND.into()),
        ("HELM_CACHE_HOME", at("cache")),
        ("HELM_CONFIG_HOME", at("config")),
        ("HELM_DATA_HOME", at("data")),
        ("HELM_PLUGINS", at("plugins")),
        ("HELM_REPOSITORY_CONFIG", at(REPOSITORIES)),
        ("HELM_REPOSITORY_CACHE", at("cache/repository")),
        ("HELM_CONTENT_CACHE", at("cache/content")),
        ("HELM_REGISTRY_CONFIG", at(REGISTRIES)),
    ]
}

/// The runs of Helm that a step takes, by their arguments.
pub(crate) fn runs(step: Step, wanted: &Wanted) -> Vec<Vec<String>> {
    let mut runs = Vec::new();
    if step == Step::Uninstall {
        return vec![uninstall(&wanted.target)];
    }
    if let Source::Repository { .. } = wanted.source {
        // The index of the repository, which names the chart's archive.
        runs.push(["repo", "update", REPOSITORY].map(str::to_owned).to_vec());
    }
    runs.push(if step == Step::Fetch { fetch(wanted) } else { apply(step, wanted) });
    runs
}

fn fetch(wanted: &Wanted) -> Vec<String> {
    let mut args = ["show", "chart"].map(str::to_owned).to_vec();
    args.extend(access(wanted));
    args.extend(["--".to_owned(), wanted.source.reference(ARCHIVE)]);
    args
}

/// How the chart is fetched.
fn access(wanted: &Wanted) -> Vec<String> {
    let access = &wanted.access;
    let mut args = Vec::new();
    let mut switch = |is_set: bool, argument: &str| args.extend(is_set.then(|| argument.to_owned()));
    switch(access.insecure_skip_tls_verify, "--insecure-skip-tls-verify");
    switch(access.plain_http, "--plain-http");
    switch(access.pass_credentials, "--pass-credentials");
    if !wanted.version.is_empty() {
        args.push(format!("--version={}", wanted.version));
    }
    if has_authorities(wanted) {
        args.push(format!("--ca-file={AUTHORITIES}"));
    }
    args
}

/// How a release is uninstalled. What `helm uninstall` waits for is that its objects are gone.
pub(crate) fn uninstall(target: &Target) -> Vec<String> {
    let mut args = begin(Step::Uninstall, target);
    args.extend(["--wait", "--ignore-not-found", "--", &target.name].map(str::to_owned));
    args
}

fn apply(step: Step, wanted: &Wanted) -> Vec<String> {
    let target = &wanted.target;
    let mut args = begin(step, target);
    // Notes are for people at a terminal.
    args.push("--hide-notes".to_owned());
    args.push(format!("--labels={HASH}={}", wanted.hash()));
    let mut switch = |is_set: bool, argument: &str| args.extend(is_set.then(|| argument.to_owned()));
    switch(wanted.create_namespace, "--create-namespace");
    switch(wanted.take_ownership, "--take-ownership");
    args.extend(access(wanted));
    args.extend(server_side(step, wanted).map(|argument| format!("--server-side={argument}")));
    if wanted.force_conflicts && wanted.server_side != Some(ServerSide::False) {
        args.push("--force-conflicts".to_owned());
    }
    args.extend(wanted.values.iter().map(|file| format!("--values={}", file.name)));
    args.extend(wanted.set.iter().enumerate().map(|(index, setting)| setting.argument(index)));
    // What follows is no option, whatever it looks like.
    args.extend(["--".to_owned(), target.name.clone(), wanted.source.reference(ARCHIVE)]);
    args
}

fn begin(step: Step, target: &Target) -> Vec<String> {
    let timeout = seconds(target.timeout);
    vec![step.as_str().to_owned(), format!("--namespace={}", target.namespace), format!("--timeout={timeout}")]
}

/// Helm's own choice where nothing is said. An install knows no `auto`; conflicts are forced by server-side apply only.
fn server_side(step: Step, wanted: &Wanted) -> Option<&'static str> {
    match (wanted.server_side, step) {
        (Some(ServerSide::True), _) => Some("true"),
        (Some(ServerSide::False), _) => Some("false"),
        (Some(ServerSide::Auto) | None, Step::Upgrade) if wanted.force_conflicts => Some("true"),
        (Some(ServerSide::Auto), Step::Upgrade) => Some("auto"),
        (Some(ServerSide::Auto) | None, _) => None,
    }
}

fn seconds(duration: Duration) -> String {
    format!("{}s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};

    use super::*;
    use crate::{
        inputs::Objects,
        wanted::tests::{wanted, wanted_with},
    };

    fn line(step: Step, wanted: &Wanted) -> String {
        let hash = wanted.hash();
        let lines: Vec<_> = runs(step, wanted).iter().map(|run| run.join(" ").replace(&hash, "HASH")).collect();
        lines.join(" && ")
    }

    fn named(wanted: &Wanted) -> BTreeMap<String, String> {
        let text = |content: Vec<u8>| String::from_utf8(content).unwrap();
        files(wanted, b"OWN").into_iter().map(|(name, content)| (name, text(content))).collect()
    }

    #[test]
    fn a_packaged_chart_comes_from_this_server_and_trusts_it_alone() {
        let wanted = wanted(json!({
            "chart": "https://%{KUBERNETES_API}%/static/charts/traefik.tgz",
            "set": {"global.systemDefaultRegistry": ""},
            "valuesContent": "a: 1",
        }));
        assert_eq!(
            line(Step::Install, &wanted),
            "install --namespace=kube-system --timeout=300s --hide-notes --labels=helmcharts.helm.cattle.io/configHash=HASH \
             --ca-file=ca.pem --values=values-0-000-HelmChart-ValuesContent.yaml --set-file=global.systemDefaultRegistry=set-0 \
             -- app https://127.0.0.1:6443/static/charts/traefik.tgz"
        );
        assert_eq!(named(&wanted)["ca.pem"], "\nOWN");
        assert_eq!(named(&wanted)["set-0"], "");
    }

    #[test]
    fn a_repository_is_a_file_so_that_its_password_is_on_no_command_line() {
        let data = [("username", "me"), ("password", "s3cret")];
        let data = data.into_iter().map(|(key, value)| (key.to_owned(), value.as_bytes().to_vec())).collect();
        let objects = Objects { secrets: [("auth".to_owned(), data)].into(), ..Objects::default() };
        let spec = json!({
            "chart": "app", "repo": "https://charts.lan", "version": "1.2", "repoCA": "CA", "targetNamespace": "apps",
            "createNamespace": true, "takeOwnership": true, "timeout": "90s", "authSecret": {"name": "auth"},
            "authPassCredentials": true, "insecureSkipTLSVerify": true,
        });
        let wanted = wanted_with(spec, Value::Null, &objects).unwrap();
        let line = line(Step::Upgrade, &wanted);
        assert_eq!(
            line,
            "repo update repository && upgrade --namespace=apps --timeout=90s --hide-notes \
             --labels=helmcharts.helm.cattle.io/configHash=HASH --create-namespace --take-ownership --insecure-skip-tls-verify \
             --pass-credentials --version=1.2 --ca-file=ca.pem -- app repository/app"
        );
        let repositories: Value = serde_json::from_str(&named(&wanted)["repositories.yaml"]).unwrap();
        let repository = &repositories["repositories"][0];
        assert_eq!((&repository["password"], &repository["caFile"]), (&json!("s3cret"), &json!("ca.pem")));
        assert_eq!(repository["pass_credentials_all"], true);
    }

    #[test]
    fn a_registry_has_its_logins_in_a_file() {
        let data = [(".dockerconfigjson".to_owned(), b"{}".to_vec())].into();
        let objects = Objects { secrets: [("registry".to_owned(), data)].into(), ..Objects::default() };
        let spec = json!({
            "chart": "oci://r.lan/app", "version": "1.2", "plainHTTP": true, "dockerRegistrySecret": {"name": "registry"},
        });
        let wanted = wanted_with(spec, Value::Null, &objects).unwrap();
        assert!(line(Step::Install, &wanted).ends_with("--plain-http --version=1.2 -- app oci://r.lan/app"));
        assert_eq!(named(&wanted)["registries.json"], "{}");
    }

    #[test]
    fn who_merges_is_said_where_a_user_says_it() {
        let argument = |step, spec: Value| {
            let mut full = json!({"chart": "oci://r.lan/app"});
            full.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
            let line = line(step, &wanted(full));
            let argument = |word: &&str| word.starts_with("--server-side") || word.starts_with("--force");
            line.split(' ').filter(argument).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(argument(Step::Upgrade, json!({})), "");
        assert_eq!(argument(Step::Install, json!({"serverSide": "auto"})), "");
        assert_eq!(argument(Step::Upgrade, json!({"serverSide": "auto"})), "--server-side=auto");
        assert_eq!(argument(Step::Install, json!({"forceConflicts": true})), "--force-conflicts");
        assert_eq!(argument(Step::Upgrade, json!({"forceConflicts": true})), "--server-side=true --force-conflicts");
        assert_eq!(
            argument(Step::Upgrade, json!({"serverSide": "false", "forceConflicts": true})),
            "--server-side=false"
        );
    }

    #[test]
    fn a_chart_is_fetched_as_it_is_installed() {
        let wanted = wanted(json!({"chart": "app", "repo": "https://charts.lan", "version": "1.2", "repoCA": "CA"}));
        assert_eq!(
            line(Step::Fetch, &wanted),
            "repo update repository && show chart --version=1.2 --ca-file=ca.pem -- repository/app"
        );
    }

    #[test]
    fn uninstalling_waits_for_objects_and_minds_no_release_that_is_gone() {
        let wanted = wanted(json!({"chart": "oci://r.lan/app", "timeout": "1m30.5s"}));
        assert_eq!(
            line(Step::Uninstall, &wanted),
            "uninstall --namespace=kube-system --timeout=90.5s --wait --ignore-not-found -- app"
        );
    }
}
