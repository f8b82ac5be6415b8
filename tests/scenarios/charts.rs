//! Helm charts: what a user of k3s does with them, by the real Helm on the real API.

use std::fs;

use cluster_tests::{Network, Node, PATIENCE, step};

use crate::chart_registry::Registry;

const STATIC: &str = "/var/lib/rancher/k3s/server/static/charts";
const HELM: &str = "KUBECONFIG=/etc/rancher/k3s/k3s.yaml /opt/k3s/libexec/k3s/helm";

/// A ConfigMap that shows its values; a Service that the API refuses, and a hook that never ends where there is no node, if they say so.
const TEMPLATE: &str = include_str!("../manifests/chart-template.yaml");

/// What k3s has of a chart `taken`.
const OF_K3S: &str = include_str!("../manifests/k3s-chart.yaml");

/// Its release, as Helm 3 records it.
const RECORD: &str = r#"{
    "name": "taken", "namespace": "kube-system", "version": 1, "config": {"greeting": "of k3s"},
    "info": {"first_deployed": "2026-01-01T00:00:00Z", "last_deployed": "2026-01-01T00:00:00Z", "deleted": "", "description": "Install complete", "status": "deployed"},
    "chart": {"metadata": {"apiVersion": "v2", "name": "app", "version": "0.9.0"}, "lock": null, "templates": [], "values": {}, "schema": null, "files": null},
    "manifest": "---\n# Source: app/templates/all.yaml\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: taken}\ndata: {greeting: of k3s, revision: \"1\"}\n"
}"#;

/// Makes `/srv/charts/NAME-VERSION.tgz` on a node.
fn pack(node: &Node, name: &str, version: &str) -> String {
    let folder = format!("/tmp/charts/{name}");
    node.write(&format!("{folder}/Chart.yaml"), &format!("apiVersion: v2\nname: {name}\nversion: {version}\n"));
    node.write(&format!("{folder}/values.yaml"), "greeting: default\nrefused: false\nhangs: false\n");
    node.write(&format!("{folder}/templates/all.yaml"), TEMPLATE);
    let archive = format!("/srv/charts/{name}-{version}.tgz");
    node.succeed(&format!("mkdir -p /srv/charts && tar -C /tmp/charts -czf {archive} {name}"));
    archive
}

/// Puts a chart where a server serves it.
fn publish(server: &Node, name: &str) {
    let archive = pack(server, name, "1.0.0");
    server.succeed(&format!("mkdir -p {STATIC} && cp {archive} {STATIC}/{name}.tgz"));
}

/// A HelmChart of a published chart, with more lines of its spec.
fn chart(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: helm.cattle.io/v1
kind: HelmChart
metadata: {{name: {name}, namespace: kube-system}}
spec:
  chart: https://%{{KUBERNETES_API}}%/static/charts/app.tgz
{spec}"
    )
}

/// Values for a HelmChart that somebody else keeps.
fn config(name: &str, values: &str) -> String {
    format!(
        "apiVersion: helm.cattle.io/v1
kind: HelmChartConfig
metadata: {{name: {name}, namespace: kube-system}}
spec: {{valuesContent: '{values}'}}"
    )
}

fn wait_for_greeting(server: &Node, name: &str, greeting: &str) {
    let read = format!("k3s kubectl get configmap {name} -n kube-system -o jsonpath={{.data.greeting}}");
    server.wait_until_succeeds(&format!("test \"$({read})\" = '{greeting}'"), PATIENCE);
}

fn wait_for_status_of(server: &Node, name: &str, status: &str) {
    let records = format!("k3s kubectl get secrets -n kube-system -l owner=helm,name={name},status={status} -o name");
    server.wait_until_succeeds(&format!("{records} | grep -q ."), PATIENCE);
}

fn wait_until_failed(server: &Node, name: &str) {
    let failed = "{.status.conditions[?(@.type==\"Failed\")].status}";
    let read = format!("k3s kubectl get helmchart {name} -n kube-system -o jsonpath='{failed}'");
    server.wait_until_succeeds(&format!("{read} | grep -qx True"), PATIENCE);
}

#[test]
fn helm_charts_become_releases() {
    let network = Network::new();
    let server = Node::boot(&network, "server");
    let until = |command: &str| server.wait_until_succeeds(command, PATIENCE);
    step("a chart of the server's own folder, with all of k3s' ways to say values", || {
        server.succeed("mkdir -p /var/lib/rancher/k3s/server/manifests");
        publish(&server, "app");
        let spec = "  targetNamespace: apps\n  createNamespace: true\n  set: {greeting: 'hello, world'}\n  jobImage: klipper\n";
        server.write("/var/lib/rancher/k3s/server/manifests/app.yaml", &chart("app", spec));
        server.start_k3s("--disable-agent --disable=coredns");
        until("k3s kubectl get configmap app -n apps -o jsonpath={.data.greeting} | grep -qx 'hello, world'");
    });
    step("what users and scripts look at is there", || {
        server.kubectl("wait --for=condition=complete job/helm-install-app -n kube-system --timeout=60s");
        let listed = server.kubectl("get helmcharts -n kube-system -o wide");
        assert!(listed.contains("helm-install-app") && listed.contains("apps"), "{listed}");
        let releases = server.succeed(&format!("{HELM} list -n apps"));
        assert!(releases.contains("deployed") && releases.contains("app-1.0.0"), "{releases}");
        until(
            "k3s kubectl get events -n kube-system | grep -q 'ApplyJob.*Applying HelmChart from https://127.0.0.1:6443'",
        );
        until("k3s kubectl get events -n kube-system | grep -q 'FieldsIgnored.*jobImage: Helm needs no image'");
        assert_eq!(server.kubectl("get pods -A -o name"), "");
        let status = server.succeed("k3s status");
        assert!(status.contains("helm-controller"), "{status}");
    });
    step("a chart that goes takes its release along", || {
        server.succeed("rm /var/lib/rancher/k3s/server/manifests/app.yaml");
        server.kubectl("delete helmchart app -n kube-system --timeout=120s");
        server.fail("k3s kubectl get configmap app -n apps");
        assert_eq!(server.succeed(&format!("{HELM} list -n apps -q")), "");
        until("! k3s kubectl get job helm-install-app -n kube-system 2>/dev/null");
    });
    step("values come by HelmChartConfig and by Secrets, and each change is an upgrade", || {
        server.kubectl("create secret generic values -n kube-system --from-literal=a='greeting: secret'");
        server
            .apply(&chart("web", "  valuesContent: 'greeting: chart'\n  valuesSecrets: [{name: values, keys: [a]}]\n"));
        wait_for_greeting(&server, "web", "secret");
        server.kubectl("patch secret values -n kube-system -p '{\"stringData\":{\"a\":\"greeting: changed\"}}'");
        wait_for_greeting(&server, "web", "changed");
        server.apply(&config("web", "greeting: config"));
        wait_for_greeting(&server, "web", "config");
        server.kubectl("delete helmchartconfig web -n kube-system");
        wait_for_greeting(&server, "web", "changed");
        assert_eq!(server.kubectl("get configmap web -n kube-system -o jsonpath={.data.revision}"), "4");
    });
    step("what k3s' helm-controller installed is taken over: upgraded, not installed anew, and uninstalled", || {
        let release = server.succeed(&format!("printf %s '{RECORD}' | gzip -c | base64 -w0 | base64 -w0"));
        server.apply(&OF_K3S.replace("RELEASE", release.trim()));
        let uid = server.kubectl("get configmap taken -n kube-system -o jsonpath={.metadata.uid}");
        wait_for_greeting(&server, "taken", "taken over");
        let after = "get configmap taken -n kube-system -o jsonpath='{.metadata.uid} {.data.revision}'";
        assert_eq!(server.kubectl(after), format!("{uid} 2"));
        server.kubectl("wait --for=condition=complete job/helm-install-taken -n kube-system --timeout=60s");
        let needed = "serviceaccount/helm-taken clusterrolebinding/helm-kube-system-taken secret/chart-values-taken configmap/chart-content-taken";
        until(&format!("test -z \"$(k3s kubectl get {needed} -n kube-system -o name --ignore-not-found)\""));
        assert_eq!(server.kubectl("get pods -n kube-system -o name"), "");
        server.kubectl("delete helmchart taken -n kube-system --timeout=120s");
        server.fail("k3s kubectl get configmap taken -n kube-system");
        assert_eq!(server.kubectl("get secrets -n kube-system -l owner=helm,name=taken -o name"), "");
    });
    step("a chart that comes along in the object", || {
        let content = server.succeed("base64 -w0 < /srv/charts/app-1.0.0.tgz");
        let object = chart("packed", &format!("  chartContent: {}\n  driver: configmap\n", content.trim()));
        server.apply(&object);
        wait_for_greeting(&server, "packed", "default");
        server.kubectl("get configmap sh.helm.release.v1.packed.v1 -n kube-system");
    });
}

#[test]
fn traefik_as_k3s_installed_it_is_upgraded_in_its_place() {
    let network = Network::new();
    let server = Node::boot(&network, "server");
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/traefik");
    let facts = || {
        let get =
            |object: &str, path: &str| server.kubectl(&format!("get {object} -n kube-system -o jsonpath={{{path}}}"));
        [
            get("deployment/traefik", ".metadata.uid"),
            get("service/traefik", ".metadata.uid"),
            get("service/traefik", ".spec.clusterIP"),
            get("service/traefik", ".spec.ports[*].nodePort"),
            get("ingressclass/traefik", ".metadata.uid"),
            get("clusterrolebinding/traefik-kube-system", ".metadata.uid"),
        ]
    };
    step("a release of another chart and version, with the HelmChart of k3s", || {
        server.write("/tmp/old/Chart.yaml", "apiVersion: v2\nname: traefik\nversion: 37.1.1+up37.1.0\n");
        server.write("/tmp/old/templates/all.yaml", include_str!("../manifests/k3s-traefik.yaml"));
        server.start_k3s("--disable-agent --disable=coredns,traefik");
        server.wait_until_succeeds("k3s kubectl get crd helmcharts.helm.cattle.io", PATIENCE);
        server.succeed(&format!(
            "{HELM} install traefik /tmp/old -n kube-system --labels=helmcharts.helm.cattle.io/configHash=OFK3S"
        ));
    });
    let before = facts();
    step("it becomes ours: an upgrade, and addresses, ports and the class stay", || {
        copy(&server, chart, "/tmp/new/traefik");
        let content = server.succeed("tar -C /tmp/new -czf - traefik | base64 -w0");
        server.apply(&format!(
            "apiVersion: helm.cattle.io/v1
kind: HelmChart
metadata:
  name: traefik
  namespace: kube-system
  annotations: {{helmcharts.cattle.io/managed-by: helm-controller}}
  finalizers: [wrangler.cattle.io/on-helm-chart-remove]
spec:
  chartContent: {}
  set: {{global.systemDefaultRegistry: \"\"}}",
            content.trim()
        ));
        let image =
            "k3s kubectl get deployment traefik -n kube-system -o jsonpath='{.spec.template.spec.containers[0].image}'";
        server.wait_until_succeeds(&format!("{image} | grep -qF '{}'", k3s_images::TRAEFIK), PATIENCE);
        server.kubectl("wait --for=condition=complete job/helm-install-traefik -n kube-system --timeout=60s");
        assert_eq!(facts(), before);
        let history = server.succeed(&format!("{HELM} history traefik -n kube-system"));
        assert!(history.contains("traefik-37.1.1") && history.contains("Upgrade complete"), "{history}");
        println!("{history}");
        server.fail("k3s kubectl get configmap only-of-k3s -n kube-system");
    });
}

/// Copies a folder of this machine to a node.
fn copy(node: &Node, from: &str, to: &str) {
    for entry in fs::read_dir(from).expect("it is in the tree") {
        let entry = entry.expect("it is readable");
        let (path, name) = (entry.path(), entry.file_name().into_string().expect("a plain name"));
        if path.is_dir() {
            copy(node, path.to_str().expect("a plain path"), &format!("{to}/{name}"));
        } else {
            node.write(&format!("{to}/{name}"), &fs::read_to_string(path).expect("a text"));
        }
    }
}

#[test]
fn failures_are_answered_as_the_policy_says() {
    let network = Network::new();
    let server = Node::boot(&network, "server");
    publish(&server, "app");
    server.start_k3s("--disable-agent --disable=coredns");
    server.wait_until_succeeds("k3s kubectl get crd helmcharts.helm.cattle.io", PATIENCE);
    let uid =
        |name: &str| server.kubectl(&format!("get configmap {name} -n kube-system -o jsonpath={{.metadata.uid}}"));
    step("what cannot be fetched, or is wrong, is told and tried again", || {
        server.apply(&chart("missing", "").replace("app.tgz", "missing.tgz"));
        server.apply(&chart("odd", "").replace("https://%{KUBERNETES_API}%/static/charts/app.tgz", "/etc/passwd"));
        server.wait_for_status("HelmChart kube-system/missing: helm install failed");
        server.wait_for_status("HelmChart kube-system/odd: spec.chart \"/etc/passwd\" is no chart");
        server.kubectl("delete helmchart missing odd -n kube-system --timeout=60s");
    });
    step("abort: a release that failed stays until somebody mends it", || {
        server.apply(&chart("abort", "  failurePolicy: abort\n  valuesContent: 'refused: true'\n"));
        wait_until_failed(&server, "abort");
        let failed = server.kubectl("get helmchart abort -n kube-system -o jsonpath={.status.conditions[1].message}");
        assert!(failed.contains("99999"), "{failed}");
        server.kubectl("wait --for=condition=failed job/helm-install-abort -n kube-system --timeout=60s");
        server.apply(&config("abort", "refused: false"));
        server.succeed(&format!("{HELM} uninstall abort -n kube-system"));
        server.kubectl("annotate helmchart abort -n kube-system mended=yes");
        wait_for_greeting(&server, "abort", "default");
        server.kubectl("wait --for=condition=complete job/helm-install-abort -n kube-system --timeout=60s");
    });
    step("retry: an upgrade that failed is made again, and what runs stays", || {
        server.apply(&chart("retry", "  failurePolicy: retry\n"));
        wait_for_greeting(&server, "retry", "default");
        let before = uid("retry");
        server.apply(&config("retry", "refused: true"));
        wait_for_status_of(&server, "retry", "failed");
        server.apply(&config("retry", "greeting: mended"));
        wait_for_greeting(&server, "retry", "mended");
        assert_eq!(uid("retry"), before);
    });
    step("reinstall, the default: a release that failed goes and comes anew", || {
        server.apply(&chart("again", "  backOffLimit: 2\n"));
        wait_for_greeting(&server, "again", "default");
        let before = uid("again");
        server.apply(&config("again", "refused: true"));
        wait_until_failed(&server, "again");
        let failed = uid("again");
        server.succeed(&format!("mv {STATIC}/app.tgz {STATIC}/away.tgz"));
        server.apply(&config("again", "greeting: anew"));
        server.wait_for_status("HelmChart kube-system/again: helm show failed");
        assert_eq!(uid("again"), failed, "nothing is uninstalled for a chart that cannot be fetched");
        server.succeed(&format!("mv {STATIC}/away.tgz {STATIC}/app.tgz"));
        wait_for_greeting(&server, "again", "anew");
        assert_ne!(uid("again"), before);
    });
    step("an upgrade that hangs is given up for what a user says meanwhile", || {
        server.apply(&config("retry", "hangs: true"));
        wait_for_status_of(&server, "retry", "pending-upgrade");
        server.apply(&config("retry", "greeting: meanwhile"));
        wait_for_greeting(&server, "retry", "meanwhile");
    });
    step("kill -9 of helm: the upgrade is made again", || {
        server.apply(&config("retry", "hangs: true"));
        wait_for_status_of(&server, "retry", "pending-upgrade");
        let before = uid("retry");
        server.succeed("pkill -KILL -x helm");
        server.wait_until_succeeds(
            "k3s kubectl get events -n kube-system | grep -q 'Interrupted.*helmchart/retry'",
            PATIENCE,
        );
        server.apply(&config("retry", "greeting: healed"));
        wait_for_greeting(&server, "retry", "healed");
        assert_eq!(uid("retry"), before);
    });
    step("kill -9 of k3s during an upgrade and during an install: both are made again", || {
        server.apply(&config("again", "hangs: true"));
        server.apply(&chart("first", "  valuesContent: 'hangs: true'\n"));
        wait_for_status_of(&server, "again", "pending-upgrade");
        wait_for_status_of(&server, "first", "pending-install");
        let before = uid("again");
        server.succeed("pid=$(pgrep -x k3s); kill -KILL $pid; tail --pid=$pid -f /dev/null");
        server.wait_until_succeeds("! pgrep -x helm", PATIENCE);
        server.start_k3s("--disable-agent --disable=coredns");
        server.wait_until_succeeds("k3s kubectl get --raw /readyz", PATIENCE);
        server.apply(&config("again", "greeting: healed"));
        server.apply(&config("first", "hangs: false"));
        wait_for_greeting(&server, "again", "healed");
        wait_for_greeting(&server, "first", "default");
        assert_eq!(uid("again"), before);
    });
    step("without the controller nobody touches a chart", || {
        server.stop_k3s();
        server.start_k3s("--disable-agent --disable=coredns --disable-helm-controller");
        server.wait_until_succeeds("k3s kubectl get --raw /readyz", PATIENCE);
        server.apply(&chart("left-alone", ""));
        server.wait_until_succeeds("k3s status -o json | grep -q '\"deploy\"'", PATIENCE);
        server.fail("k3s status | grep helm-controller");
        assert_eq!(server.kubectl("get helmchart left-alone -n kube-system -o jsonpath={.metadata.finalizers}"), "");
    });
}

#[test]
fn charts_come_from_registries_and_repositories_with_logins_and_authorities() {
    let network = Network::new();
    let server = Node::boot(&network, "server");
    step("a registry and a repository, which show a certificate of their own authority and want a login", || {
        pack(&server, "app", "1.0.0");
        pack(&server, "app", "1.1.0");
        server.succeed(
            "cd /tmp && openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=registry -addext subjectAltName=IP:127.0.0.1 \
             -keyout registry.key -out registry.crt 2>/dev/null",
        );
        // The files of an OCI registry, and the index of a repository.
        server.succeed(
            r#"set -e; cd /srv
            app=v2/charts/app; mkdir -p $app/manifests $app/blobs $app/tags
            blob() { sum=sha256:$(sha256sum < $1 | cut -d' ' -f1); cp $1 $app/blobs/$sum; size=$(wc -c < $1); }
            for version in 1.0.0 1.1.0; do
                printf '{"apiVersion":"v2","name":"app","version":"%s"}' $version > /tmp/config.json
                blob /tmp/config.json; config="\"digest\":\"$sum\",\"size\":$size"
                blob charts/app-$version.tgz; layer="\"digest\":\"$sum\",\"size\":$size"
                printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.cncf.helm.config.v1+json",%s},"layers":[{"mediaType":"application/vnd.cncf.helm.chart.content.v1.tar+gzip",%s}]}' "$config" "$layer" > /tmp/manifest.json
                cp /tmp/manifest.json $app/manifests/$version
                cp /tmp/manifest.json $app/manifests/sha256:$(sha256sum < /tmp/manifest.json | cut -d' ' -f1)
            done
            printf '{"name":"charts/app","tags":["1.0.0","1.1.0"]}' > $app/tags/list
            printf 'apiVersion: v1\nentries:\n  app:\n  - {apiVersion: v2, name: app, version: 1.1.0, urls: [app-1.1.0.tgz]}\n' > charts/index.yaml"#,
        );
        server.start_k3s("--disable-agent --disable=coredns");
        server.wait_until_succeeds("k3s kubectl get crd helmcharts.helm.cattle.io", PATIENCE);
    });
    // me:s3cret
    let _registry = Registry::serve(&server, "127.0.0.1:5443".parse().expect("an address"), "bWU6czNjcmV0");
    let of = |name: &str, spec: &str| {
        format!(
            "apiVersion: helm.cattle.io/v1\nkind: HelmChart\nmetadata: {{name: {name}, namespace: kube-system}}\nspec:\n{spec}"
        )
    };
    step("their authority in a ConfigMap, their logins in Secrets", || {
        server.kubectl("create configmap authority -n kube-system --from-file=ca.crt=/tmp/registry.crt");
        server.kubectl("create secret generic login -n kube-system --type=kubernetes.io/basic-auth --from-literal=username=me --from-literal=password=s3cret");
        server.kubectl("create secret docker-registry registry -n kube-system --docker-server=127.0.0.1:5443 --docker-username=me --docker-password=s3cret");
    });
    step("a chart of an OCI registry, by version and as the latest one", || {
        let spec = "  chart: oci://127.0.0.1:5443/charts/app\n  dockerRegistrySecret: {name: registry}\n  repoCAConfigMap: {name: authority}\n";
        server.apply(&of("pinned", &format!("{spec}  version: 1.0.0\n")));
        server.apply(&of("latest", spec));
        wait_for_greeting(&server, "pinned", "default");
        wait_for_greeting(&server, "latest", "default");
        let releases = server.succeed(&format!("{HELM} list -n kube-system"));
        assert!(releases.contains("app-1.0.0") && releases.contains("app-1.1.0"), "{releases}");
    });
    step("a chart of a repository", || {
        server.apply(&of(
            "repository",
            "  chart: app\n  repo: https://127.0.0.1:5443/charts\n  authSecret: {name: login}\n  repoCAConfigMap: {name: authority}\n",
        ));
        wait_for_greeting(&server, "repository", "default");
    });
    step("without the login, and without the authority, Helm says so", || {
        server
            .apply(&of("stranger", "  chart: oci://127.0.0.1:5443/charts/app\n  repoCAConfigMap: {name: authority}\n"));
        server.apply(&of(
            "doubtful",
            "  chart: app\n  repo: https://127.0.0.1:5443/charts\n  authSecret: {name: login}\n",
        ));
        server.wait_for_status("HelmChart kube-system/stranger: helm install failed");
        server.wait_for_status("HelmChart kube-system/doubtful: helm install failed");
        server.kubectl(
            "patch helmchart doubtful -n kube-system --type=merge -p '{\"spec\":{\"insecureSkipTLSVerify\":true}}'",
        );
        wait_for_greeting(&server, "doubtful", "default");
    });
    step("no password is left behind", || {
        server.fail("grep -r s3cret /run/k3s/helm /var/log/k3s.log");
    });
}

#[test]
fn another_server_goes_on_with_a_chart_when_the_leader_dies() {
    let network = Network::new();
    let store = Node::boot(&network, "store");
    let (one, two) = (Node::boot(&network, "one"), Node::boot(&network, "two"));
    let flags = format!(
        "--disable-agent --disable=coredns --token=s3cret --datastore-endpoint=http://{}:2379",
        store.address()
    );
    let mut servers = [one, two];
    step("two servers, one of which leads", || {
        store.background(
            "exec k3s datastore serve --endpoint=sqlite:///var/lib/store.db --listen=http://0.0.0.0:2379 --insecure-listen",
        );
        for server in &servers {
            publish(server, "app");
            server.start_k3s(&flags);
            server.wait_until_succeeds("k3s kubectl get crd helmcharts.helm.cattle.io", PATIENCE);
        }
    });
    let mut leader = String::new();
    step("an upgrade hangs on the leader", || {
        servers[0].apply(&chart("app", ""));
        wait_for_greeting(&servers[0], "app", "default");
        servers[0].apply(&config("app", "hangs: true"));
        wait_for_status_of(&servers[0], "app", "pending-upgrade");
        leader = servers[0].kubectl("get lease k3s-controllers -n kube-system -o jsonpath={.spec.holderIdentity}");
    });
    let dead = servers.iter().position(|server| server.name() == leader).expect("one of them leads");
    let other = 1 - dead;
    step("the leader dies, and the other one makes the upgrade", || {
        servers[other].fail("pgrep -x helm");
        servers[dead].succeed("pgrep -x helm");
        servers[dead].crash();
        servers[other].wait_until_succeeds(
            "k3s kubectl get events -n kube-system | grep -q 'Interrupted.*helmchart/app'",
            PATIENCE,
        );
        servers[other].wait_until_succeeds("pgrep -x helm", PATIENCE);
        servers[other].apply(&config("app", "greeting: healed"));
        wait_for_greeting(&servers[other], "app", "healed");
    });
}
