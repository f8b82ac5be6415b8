//! Helm charts and repositories that nobody should have made: each harms itself alone, and says by what.

use std::{net::TcpListener, thread};

use cluster_tests::{Network, Node, PATIENCE, step};

use crate::chart_registry::Registry;

const STATIC: &str = "/var/lib/rancher/k3s/server/static/charts";

/// Makes an archive below `/static/charts` of what `make` leaves in the folder `NAME`, which has a chart in it already.
fn publish(server: &Node, name: &str, make: &str) {
    server.write(&format!("/tmp/{name}/Chart.yaml"), &format!("apiVersion: v2\nname: {name}\nversion: 1.0.0\n"));
    server.succeed(&format!(
        "set -e; mkdir -p {STATIC} /tmp/{name}/templates; cd /tmp; {make}; test -e {STATIC}/{name}.tgz || tar -czf {STATIC}/{name}.tgz {name}"
    ));
}

fn chart(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: helm.cattle.io/v1\nkind: HelmChart\nmetadata: {{name: {name}, namespace: kube-system}}\nspec:\n{spec}\n---\n"
    )
}

fn own(name: &str, archive: &str) -> String {
    chart(name, &format!("  chart: https://%{{KUBERNETES_API}}%/static/charts/{archive}.tgz"))
}

#[test]
fn a_chart_of_a_stranger_harms_itself_alone() {
    let network = Network::new();
    let server = Node::boot(&network, "server");
    let until = |command: &str| server.wait_until_succeeds(command, PATIENCE);
    // Helm deletes five thousand objects one after the other.
    let delete = |names: &str| server.kubectl(&format!("delete helmchart {names} -n kube-system --timeout=300s"));
    step("archives that are too large, that lead out of themselves, or that are none", || {
        publish(&server, "bomb", "head -c 300000000 /dev/zero > bomb/templates/zeros.txt");
        publish(
            &server,
            "outside",
            &format!(
                "echo x > evil; tar -P -czf {STATIC}/outside.tgz --transform 's,^evil,outside/../../../tmp/evil-came,' outside evil"
            ),
        );
        publish(&server, "links", "ln -s /etc/shadow links/values.yaml; ln -s / links/templates/all");
        publish(&server, "noise", &format!("head -c 100000 /dev/urandom > {STATIC}/noise.tgz"));
        publish(
            &server,
            "plain",
            "printf 'apiVersion: v1\\nkind: ConfigMap\\nmetadata: {name: {{ .Release.Name }}}\\n' > plain/templates/a.yaml",
        );
        server.start_k3s("--disable-agent --disable=coredns");
        until("k3s kubectl get crd helmcharts.helm.cattle.io");
        server.apply(&["bomb", "outside", "links", "noise"].map(|name| own(name, name)).concat());
        server.wait_for_status("HelmChart kube-system/bomb: helm install failed: INSTALLATION FAILED: unable to load chart archive: it is damaged, has files outside of its folder, or more than 100 MiB once it is unpacked");
        for name in ["outside", "noise"] {
            until(&format!("k3s status --all | grep 'HelmChart kube-system/{name} ' | grep failed"));
        }
        println!("{}", server.succeed("k3s status --all"));
        server.fail("ls /tmp/evil-came* /run/tmp/evil-came* 2>/dev/null");
        // Links are no files of a chart.
        until("k3s kubectl wait --for=condition=complete job/helm-install-links -n kube-system --timeout=5s");
        server.fail(
            "KUBECONFIG=/etc/rancher/k3s/k3s.yaml /opt/k3s/libexec/k3s/helm get all links -n kube-system | grep root:",
        );
        server.apply(&own("plain", "plain"));
        until("k3s kubectl get configmap plain -n kube-system");
        delete("bomb outside links noise");
    });
    step("values that are no mapping, and as many as the API takes", || {
        server.apply(
            &(chart(
                "text",
                "  chart: https://%{KUBERNETES_API}%/static/charts/plain.tgz\n  valuesContent: just a text",
            ) + &chart("list", "  chart: https://%{KUBERNETES_API}%/static/charts/plain.tgz\n  values: [1]")),
        );
        server.wait_for_status("spec.values is no mapping: write values by their names");
        until("k3s status --all | grep 'HelmChart kube-system/text ' | grep 'ValuesContent'");
        let failed = server.kubectl("get helmchart text -n kube-system -o jsonpath='{.status.conditions[1].status} {.status.conditions[1].message}'");
        assert!(
            failed.starts_with("False ") && failed.contains("ValuesContent"),
            "as in k3s while it is tried again: {failed}"
        );
        let many = format!(
            "  chart: https://%{{KUBERNETES_API}}%/static/charts/plain.tgz\n  valuesContent: 'a: {}'",
            "x".repeat(1 << 20)
        );
        server.write("/tmp/many.yaml", &chart("many", &many));
        server.kubectl("create -f /tmp/many.yaml");
        until("k3s kubectl get configmap many -n kube-system");
        delete("text list many");
    });
    step("five thousand objects", || {
        publish(
            &server,
            "crowd",
            "printf '{{- range $i := until 5000 }}\\n---\\napiVersion: v1\\nkind: ConfigMap\\nmetadata: {name: {{ $.Release.Name }}-{{ $i }}}\\n{{- end }}\\n' > crowd/templates/a.yaml",
        );
        server.apply(&own("crowd", "crowd"));
        until("k3s kubectl get configmap crowd-4999 -n kube-system");
        until("k3s kubectl wait --for=condition=complete job/helm-install-crowd -n kube-system --timeout=60s");
        delete("crowd");
    });
    step("one that goes while it is installed", || {
        publish(
            &server,
            "hangs",
            "printf 'apiVersion: batch/v1\\nkind: Job\\nmetadata: {name: hangs, annotations: {helm.sh/hook: pre-install}}\\nspec: {template: {spec: {restartPolicy: Never, containers: [{name: a, image: a}]}}}\\n' > hangs/templates/a.yaml",
        );
        server.apply(&own("hangs", "hangs"));
        until("k3s kubectl get job hangs -n kube-system");
        delete("hangs");
    });
    step("a Job of somebody else that has the name of Helm's is left alone", || {
        server.kubectl("create job helm-install-taken -n kube-system --image=a");
        let uid = server.kubectl("get job helm-install-taken -n kube-system -o jsonpath={.metadata.uid}");
        server.apply(&own("taken", "plain"));
        until("k3s kubectl get configmap taken -n kube-system");
        delete("taken");
        assert_eq!(server.kubectl("get job helm-install-taken -n kube-system -o jsonpath={.metadata.uid}"), uid);
    });
    step("a repository that never answers, beside others that do", || {
        let wire = server.wire();
        let listener =
            thread::spawn(move || wire.run(|| TcpListener::bind("127.0.0.1:5444").expect("the port is free")));
        let _silent = listener.join().expect("it listens");
        server
            .apply(&(chart("silent", "  chart: app\n  repo: http://127.0.0.1:5444/charts") + &own("beside", "plain")));
        until("k3s kubectl get configmap beside -n kube-system");
        server.kubectl("delete helmchart silent -n kube-system --timeout=60s");
    });
    step("a repository whose index has 100 MB", || {
        server.succeed(
            "set -e; cd /tmp && openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=registry -addext subjectAltName=IP:127.0.0.1 \
             -keyout registry.key -out registry.crt 2>/dev/null; mkdir -p /srv/charts; cd /srv/charts; \
             (printf 'apiVersion: v1\\nentries:\\n  app:\\n'; yes '  - {apiVersion: v2, name: app, version: 1.1.0, urls: [app-1.1.0.tgz]}' | head -c 100000000 | head -n -1) > index.yaml",
        );
        // me:s3cret
        let _registry = Registry::serve(&server, "127.0.0.1:5443".parse().expect("an address"), "bWU6czNjcmV0");
        server.kubectl("create secret generic login -n kube-system --type=kubernetes.io/basic-auth --from-literal=username=me --from-literal=password=s3cret");
        server.apply(&chart("index", "  chart: app\n  repo: https://127.0.0.1:5443/charts\n  authSecret: {name: login}\n  insecureSkipTLSVerify: true"));
        until("k3s status --all | grep 'HelmChart kube-system/index ' | grep -i memory");
        println!("{}", server.succeed("k3s status --all | grep kube-system/index"));
        server.apply(&own("after", "plain"));
        until("k3s kubectl get configmap after -n kube-system");
    });
}
