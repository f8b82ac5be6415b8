//! The chart of Traefik, rendered by the Helm that is shipped: with the values that users of k3s set, and with wrong ones.

use std::{
    fs,
    path::Path,
    process::{self, Command},
};

/// What Helm makes of the chart with these values, or what it says.
fn render(values: &str) -> Result<String, String> {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/traefik");
    let file =
        std::env::temp_dir().join(format!("k3s-traefik-values-{}-{:?}", process::id(), std::thread::current().id()));
    fs::write(&file, values).expect("a temporary folder takes files");
    let mut helm = Command::new(cluster_tests::dist().join("libexec/k3s/helm"));
    let ended =
        helm.args(["template", "traefik", "--namespace=kube-system", "--values"]).arg(&file).arg(chart).output();
    fs::remove_file(&file).expect("it was just written");
    let ended = ended.expect("build it with `cargo xtask dist`");
    let text = |bytes| String::from_utf8(bytes).expect("Helm writes UTF-8");
    if ended.status.success() { Ok(text(ended.stdout)) } else { Err(text(ended.stderr)) }
}

/// Fails if a line is missing, wherever it is.
#[track_caller]
fn has(rendered: &str, lines: &[&str]) {
    for line in lines {
        let is_it = |found: &str| found.trim().trim_start_matches("- ").trim_matches('"') == *line;
        assert!(rendered.lines().any(is_it), "{line} is missing in\n{rendered}");
    }
}

#[test]
fn by_default_it_is_what_users_of_k3s_expect() {
    let rendered = render("").unwrap();
    has(
        &rendered,
        &[
            "kind: Deployment",
            "replicas: 1",
            "name: traefik",
            "app.kubernetes.io/name: traefik",
            "app.kubernetes.io/instance: traefik-kube-system",
            &format!("image: \"{}", k3s_images::TRAEFIK),
            "type: LoadBalancer",
            "port: 80",
            "port: 443",
            "ingressclass.kubernetes.io/is-default-class: \"true",
            "--entryPoints.web.address=:8000/tcp",
            "--entryPoints.websecure.address=:8443/tcp",
            "--entryPoints.websecure.http.tls=true",
            "--providers.kubernetesCRD=true",
            "--providers.kubernetesIngress=true",
            "--providers.kubernetesIngress.ingressEndpoint.publishedService=kube-system/traefik",
            "--global.checkNewVersion=false",
        ],
    );
    for absent in ["kind: IngressRoute", "kind: PersistentVolumeClaim", "gateway", "--accessLog", "hostNetwork"] {
        assert!(!rendered.contains(absent), "{absent}");
    }
}

#[test]
fn values_are_those_of_traefiks_own_chart() {
    let rendered = render(
        "
global: {systemDefaultRegistry: 'registry.test:5000'}
deployment: {kind: DaemonSet, podAnnotations: {a: b}}
ports:
  web:
    nodePort: 30080
    redirections: {entryPoint: {to: websecure, scheme: https}}
    forwardedHeaders: {trustedIPs: [10.0.0.0/8, 192.168.0.0/16]}
  websecure:
    http3: {enabled: true}
    tls: {certResolver: le, domains: [{main: a.test, sans: ['*.a.test']}]}
    transport: {keepAliveMaxRequests: 1000000, respondingTimeouts: {readTimeout: 0}}
  ssh: {port: 2222, exposedPort: 22, expose: {default: true}}
  metrics: null
metrics: {prometheus: null}
providers:
  kubernetesCRD: {allowCrossNamespace: true, namespaces: [a, b]}
  kubernetesIngress: {publishedService: {enabled: false}}
  kubernetesGateway: {enabled: true}
certificatesResolvers: {le: {acme: {email: a@b.test, storage: /data/acme.json, httpChallenge: {entryPoint: web}}}}
logs: {general: {level: DEBUG}, access: {enabled: true, format: json}}
ingressRoute: {dashboard: {enabled: true}}
service: {spec: {externalTrafficPolicy: Local}, loadBalancerSourceRanges: [192.0.2.0/24]}
persistence: {enabled: true, size: 1Gi}
volumes: [{name: certificates, mountPath: /certificates, type: secret}]
resources: {limits: {memory: 150Mi}}
additionalArguments: ['--serversTransport.insecureSkipVerify=true']
hostNetwork: true
extraObjects: [{apiVersion: v1, kind: ConfigMap, metadata: {name: extra}}]
",
    )
    .unwrap();
    has(
        &rendered,
        &[
            "kind: DaemonSet",
            &format!("image: \"{}", k3s_images::TRAEFIK.replace("docker.io", "registry.test:5000")),
            "a: b",
            "nodePort: 30080",
            "--entryPoints.web.http.redirections.entryPoint.to=websecure",
            "--entryPoints.web.forwardedHeaders.trustedIPs=10.0.0.0/8,192.168.0.0/16",
            "--entryPoints.websecure.http3.advertisedPort=443",
            "name: websecure-http3",
            "--entryPoints.websecure.http.tls.certResolver=le",
            "--entryPoints.websecure.http.tls.domains[0].main=a.test",
            "--entryPoints.websecure.http.tls.domains[0].sans=*.a.test",
            "--entryPoints.websecure.transport.keepAliveMaxRequests=1000000",
            "--entryPoints.websecure.transport.respondingTimeouts.readTimeout=0",
            "--entryPoints.ssh.address=:2222/tcp",
            "port: 22",
            "--providers.kubernetesCRD.allowCrossNamespace=true",
            "--providers.kubernetesCRD.namespaces=a,b",
            "--providers.kubernetesGateway=true",
            "kind: GatewayClass",
            "--certificatesResolvers.le.acme.httpChallenge.entryPoint=web",
            "--log.level=DEBUG",
            "--accessLog.format=json",
            "kind: IngressRoute",
            "externalTrafficPolicy: Local",
            "192.0.2.0/24",
            "storage: 1Gi",
            "claimName: traefik",
            "secretName: certificates",
            "memory: 150Mi",
            "--serversTransport.insecureSkipVerify=true",
            "dnsPolicy: ClusterFirstWithHostNet",
            "name: extra",
        ],
    );
    for absent in ["publishedService", "metrics", "9100", "replicas"] {
        assert!(!rendered.contains(absent), "{absent}");
    }
}

#[test]
fn values_that_there_are_not_are_refused_by_name() {
    for (values, told) in [
        ("prots: {}", "at '': additional properties 'prots' not allowed"),
        (
            "ports: {web: {redirectTo: {port: websecure}}}",
            "at '/ports/web': additional properties 'redirectTo' not allowed",
        ),
        ("ports: {mine: {expose: {default: true}}}", "at '/ports/mine': missing property 'port'"),
        ("ports: {traefik: null}", "missing property 'traefik'"),
        ("service: {tpye: NodePort}", "at '/service': additional properties 'tpye' not allowed"),
        ("providers: {docker: {enabled: true}}", "at '/providers': additional properties 'docker' not allowed"),
        ("logs: {general: {level: LOUD}}", "at '/logs/general/level'"),
        ("deployment: {replicas: two}", "at '/deployment/replicas': got string, want integer"),
    ] {
        let error = render(values).unwrap_err();
        assert!(error.contains(told), "{values}: {error}");
    }
}
