# What services.k3s makes of a configuration, judged against what it should be. Evaluates to a list of
# { name, passed, got, expected }; `cargo xtask nix check` counts it.
{ lib }:
let
  pkgs = import ./nixpkgs/packages.nix { inherit lib; system = "x86_64-linux"; };
  evaluate = configuration: lib.evalModules {
    modules = [
      ./nixpkgs/nixos.nix
      ../../nix/module
      { _module.args.pkgs = pkgs; }
      configuration
    ];
  };
  evaluated = lib.mapAttrs (_: configuration: (evaluate configuration).config) (import ./configurations.nix { inherit pkgs; });
  inherit (evaluated) plain;

  # Store paths carry hashes that change with the stand-in; the names say which file it is.
  bare = text: lib.concatMapStrings (part: if builtins.isList part then "<${builtins.head part}>" else part) (
    builtins.split "${builtins.storeDir}/[0-9a-z]{32}-([^/ \n]*)" (builtins.unsafeDiscardStringContext (toString text))
  );
  rules = config: lib.mapAttrs (_: kinds: lib.mapAttrs (_: rule: bare rule.argument) kinds) (config.systemd.tmpfiles.settings."10-k3s" or { });
  command = config: bare config.systemd.services.k3s.serviceConfig.ExecStart;
  failed = config: map (one: one.message) (lib.filter (one: !one.assertion) config.assertions);
  # What is not served today is told today; the texts are the program's own and change with it.
  isRefusal = lib.hasInfix "which this version does not serve";
  warnings = config: lib.filter (text: !isRefusal text) config.warnings;
  # The value that a stand-in's file is made of.
  text = file: builtins.fromJSON (builtins.unsafeDiscardStringContext file.text);
  manifests = config: lib.listToAttrs (map (entry: lib.nameValuePair entry.name (text entry.path)) (lib.tail config.services.k3s.manifestFolder.entries));

  test = name: got: expected: { inherit name got expected; passed = got == expected; };
  isRefused = name: configuration: test name (builtins.tryEval (let inherit ((evaluate configuration).config.services) k3s; in builtins.deepSeq [ k3s.role k3s.settings ] true)).success false;

  documented = lib.filter (one: lib.hasPrefix "services.k3s." one.name && !one.internal && one.visible) (lib.optionAttrSetToDocList (evaluate { }).options);
  documentedBy = lib.listToAttrs (map (one: lib.nameValuePair (lib.removePrefix "services.k3s." one.name) one) documented);
  default = one: if one ? default && one.default._type or "" == "literalExpression" then one.default.text else null;

  line = lib.concatStringsSep " \\\n ";

  # What the units for other systems say, by key; comments and lists of units are not compared.
  packaged =
    file:
    lib.listToAttrs (
      lib.concatMap (
        text:
        let
          parts = builtins.match "([A-Za-z]+)=(.*)" text;
        in
        lib.optional (parts != null) (lib.nameValuePair (builtins.elemAt parts 0) (builtins.elemAt parts 1))
      ) (lib.splitString "\n" (builtins.readFile file))
    );
  # nixpkgs' module waits five seconds, calls infinity 0, and has names of its own.
  ofItsOwn = [ "After" "Description" "ExecReload" "ExecStart" "LoadCredential" "RestartSec" "TimeoutStartSec" "WantedBy" "Wants" ];
  agrees =
    role: unit:
    test "unit: agrees with the ${role}'s of packages" (
      lib.mapAttrs (_: toString) (removeAttrs (unit.serviceConfig // unit.unitConfig) ofItsOwn)
    ) (removeAttrs (packaged ../../images/systemd/${role}.service) ofItsOwn);
  package = "<k3s>/bin/k3s";
in
map (
  row:
  let
    at = builtins.elemAt row;
    one = documentedBy.${at 0} or null;
  in
  test "option ${at 0}" (if one == null then null else [ one.type (default one) ]) [ (at 1) (at 2) ]
) (import ./options.nix)
++ [
  (test "every option is described" (lib.filter (one: one.description or "" == "") documented) [ ])

  (test "nothing unless enabled" [ evaluated.nothing.systemd.services evaluated.nothing.environment.etc evaluated.nothing.boot.kernelModules evaluated.nothing.warnings (rules evaluated.nothing) ] [ { } { } [ ] [ ] { } ])

  (test "command: single-node" (command evaluated.single-node) (line [
    "${package} server" "--disable=coredns" "--disable=local-storage" "--disable=metrics-server" "--disable=servicelb"
    "--disable=traefik" "--pause-image test.local/pause:local"
  ]))
  (test "command: multi-node, server" (command evaluated.multi-node-server) (line [
    "${package} server" "--token-file %d/token-file" "--disable=coredns" "--disable=local-storage" "--disable=metrics-server"
    "--disable=servicelb" "--disable=traefik" "--node-ip=192.168.1.2" "--cluster-init" "--pause-image test.local/pause:local"
    "--flannel-iface eth1"
  ]))
  (test "command: multi-node, server2" (command evaluated.multi-node-server2) (line [
    "${package} server" "--server https://192.168.1.2:6443" "--token-file %d/token-file" "--disable=coredns"
    "--disable=local-storage" "--disable=metrics-server" "--disable=servicelb" "--disable=traefik" "--node-ip=192.168.1.3"
    "--flannel-iface eth1"
  ]))
  (test "command: multi-node, agent" (command evaluated.multi-node-agent) (line [
    "${package} agent" "--server https://192.168.1.3:6443" "--token-file %d/token-file" "--node-ip=192.168.1.1"
    "--pause-image test.local/pause:local" "--flannel-iface eth1"
  ]))
  (test "command: etcd" (command evaluated.etcd) (line [
    "${package} server" "--disable=coredns" "--disable=local-storage" "--disable=metrics-server" "--disable=servicelb"
    "--disable=traefik" "--datastore-endpoint=\"http://192.168.1.1:2379\""
  ]))
  (test "command: auto-deploy" (command evaluated.auto-deploy) "${package} server")
  (test "command: configuration" (command evaluated.configuration) (line [
    "${package} server" "--disable=coredns" "--disable=local-storage" "--disable=metrics-server" "--disable=servicelb"
    "--disable=traefik" "--node-name=test" "--kubelet-arg=config=<k3s-kubelet-config>"
  ]))
  (test "command: every flag, in nixpkgs' order" (command evaluated.every-flag) (line [
    "${package} server" "--server https://a:6443" "--token t" "--token-file %d/token-file" "--agent-token a"
    "--agent-token-file %d/agent-token-file" "--config /run/config.yaml" "--disable=traefik" "--disable=coredns"
    "--node-name=n" "--node-label=a=b" "--node-label=c=d" "--node-taint=a=b:NoSchedule" "--node-ip=10.0.0.1"
    "--node-external-ip=1.2.3.4" "--selinux" "--kubelet-arg=config=<k3s-kubelet-config>"
    "--kube-proxy-arg=config=<k3s-kube-proxy-config>" "--cluster-init" "--disable-agent" "--debug"
    "--cluster-cidr 10.24.0.0/16"
  ]))
  (test "tokens are credentials" evaluated.every-flag.systemd.services.k3s.serviceConfig.LoadCredential [ "token-file:/run/token" "agent-token-file:/run/agent-token" ])
  (test "environment file" evaluated.every-flag.systemd.services.k3s.serviceConfig.EnvironmentFile "/run/environment")

  (test "unit: wiring" (let unit = plain.systemd.services.k3s; in { inherit (unit) description after wants wantedBy; path = map (one: one.name) unit.path; }) {
    description = "k3s service";
    after = [ "firewall.service" "network-online.target" "dbus.socket" ];
    wants = [ "firewall.service" "network-online.target" ];
    wantedBy = [ "multi-user.target" ];
    path = [ "kmod" "util-linux" "nftables" "iptables" "iproute2" "conntrack-tools" ];
  })
  (test "unit: service" plain.systemd.services.k3s.serviceConfig {
    Type = "notify";
    ExecStart = "${pkgs.k3s}/bin/k3s server";
    ExecReload = "${pkgs.coreutils}/bin/kill -HUP $MAINPID";
    LoadCredential = [ ];
    TimeoutStartSec = 0;
    WatchdogSec = "2min";
    Restart = "always";
    RestartSec = "5s";
    RestartPreventExitStatus = "65 74 77 78";
    KillMode = "process";
    Delegate = "yes";
    DelegateSubgroup = "supervisor";
    OOMScoreAdjust = -999;
    LimitNOFILE = 1048576;
    LimitNPROC = "infinity";
    LimitCORE = "infinity";
    TasksMax = "infinity";
  })
  (test "unit: pods' scopes end after it" (lib.hasInfix "\nBefore=k3s.service" plain.systemd.units."cri-containerd-.scope".text) true)
  (test "unit: pods end with it if asked" evaluated.stopping.systemd.services.k3s.serviceConfig.ExecStop "${pkgs.k3s}/bin/k3s stop --all")
  (test "unit: an agent's is a server's but for the command" (
    removeAttrs evaluated.multi-node-agent.systemd.services.k3s.serviceConfig [ "ExecStart" "LoadCredential" ]
  ) (removeAttrs plain.systemd.services.k3s.serviceConfig [ "ExecStart" "LoadCredential" ]))
  (agrees "k3s" plain.systemd.services.k3s)
  (agrees "k3s-agent" evaluated.multi-node-agent.systemd.services.k3s)
  (test "unit: the host's zfs" (lib.last evaluated.zfs.systemd.services.k3s.path).name "zfs")
  (test "the package is for administrators too" (map (one: one.name) plain.environment.systemPackages) [ "k3s" ])

  (test "files: single-node" (rules evaluated.single-node) {
    "/var/lib/rancher/k3s/agent/images/nixos"."L+" = "<k3s-images>";
    "/var/lib/rancher/k3s/server/manifests/nixos"."L+" = "<k3s-manifests>";
  })
  (test "files: multi-node, agent" (rules evaluated.multi-node-agent) { "/var/lib/rancher/k3s/agent/images/nixos".r = ""; })
  (test "files: auto-deploy" (rules evaluated.auto-deploy) {
    "/var/lib/rancher/k3s/agent/images/nixos"."L+" = "<k3s-images>";
    "/var/lib/rancher/k3s/server/manifests/nixos"."L+" = "<k3s-manifests>";
    "/var/lib/rancher/k3s/server/static/charts/hello.tgz"."L+" = "<hello-chart.tgz>";
    "/var/lib/rancher/k3s/server/static/charts/other.tgz"."L+" = "<other-chart.tgz>";
  })
  (test "files: configuration" (rules evaluated.configuration) {
    "/var/lib/rancher/k3s/agent/etc/containerd/config.toml.tmpl"."L+" = "<config.toml.tmpl>";
    "/var/lib/rancher/k3s/agent/images/nixos".r = "";
    "/var/lib/rancher/k3s/server/manifests/nixos"."L+" = "<k3s-manifests>";
  })
  (test "manifests: auto-deploy" (manifests evaluated.auto-deploy) {
    "foo-namespace.yaml" = { apiVersion = "v1"; kind = "Namespace"; metadata.name = "foo"; };
    "jobs.yaml" = { apiVersion = "v1"; kind = "List"; items = lib.genList (_: { apiVersion = "v1"; kind = "Namespace"; metadata.name = "foo"; }) 2; };
    "hello.yaml" = {
      apiVersion = "v1";
      kind = "List";
      items = [
        {
          apiVersion = "helm.cattle.io/v1";
          kind = "HelmChart";
          metadata = { name = "hello"; namespace = "kube-system"; };
          spec = {
            bootstrap = false;
            chart = "https://%{KUBERNETES_API}%/static/charts/hello.tgz";
            createNamespace = false;
            targetNamespace = "default";
            timeout = "69s";
            valuesContent = ''{"image":{"repository":"test.local/test"},"runCommand":"hello"}'';
          };
        }
        { apiVersion = "v1"; kind = "Namespace"; metadata.name = "foo"; }
      ];
    };
  })
  (test "manifests: objects go with their file, the last one too" (map (config: (lib.head config.services.k3s.manifestFolder.entries).name) [ plain evaluated.auto-deploy ]) [ ".authoritative" ".authoritative" ])
  (test "manifests: auto-deploy-upgrade" (let spec = (lib.head (manifests evaluated.auto-deploy-upgrade)."app.yaml".items).spec; in [ spec.targetNamespace spec.createNamespace ]) [ "apps" true ])
  (test "images: image-upgrade" (map (entry: entry.name) evaluated.image-upgrade.services.k3s.imageFolder.entries) [ "app-1.tar" ])
  (test "kubelet's file: configuration" (text evaluated.configuration.services.k3s.kubeletConfigFile) {
    apiVersion = "kubelet.config.k8s.io/v1beta1";
    kind = "KubeletConfiguration";
    shutdownGracePeriod = "1m13s";
    shutdownGracePeriodCriticalPods = "13s";
    podsPerCore = 3;
    memoryThrottlingFactor = 0.69;
    containerLogMaxSize = "5Mi";
  })
  (test "logind waits as long as kubelet asks" evaluated.configuration.environment.etc."systemd/logind.conf.d/50-k3s.conf".text "[Login]\nInhibitDelayMaxSec=73\n")

  (test "settings are config.yaml" (text evaluated.settings.environment.etc."rancher/k3s/config.yaml".source) {
    cluster-cidr = [ "10.24.0.0/16" ];
    datastore-endpoint = "https://10.0.0.1:2379";
    embedded-registry = false;
    https-listen-port = 7443;
    kubelet-arg = [ "max-pods=50" "v=2" ];
    snapshot-schedule-cron = "0 */12 * * *";
    write-kubeconfig-mode = "0640";
  })
  (test "settings change by a restart" (map bare evaluated.settings.systemd.services.k3s.restartTriggers) [ "<k3s-config.yaml>" ])
  (test "no settings, no file" (plain.environment.etc ? "rancher/k3s/config.yaml") false)
  (test "ports are open if asked for" (let inherit (evaluated.settings.networking) firewall; in [ firewall.allowedTCPPorts firewall.allowedUDPPorts firewall.trustedInterfaces ]) [ [ 7443 10250 ] [ 8472 ] [ "cni0" "flannel.1" ] ])
  (test "ports are closed" plain.networking.firewall.allowedTCPPorts [ ])
  (test "kernel" [ plain.boot.kernelModules plain.boot.kernel.sysctl ] [
    [ "overlay" "nf_conntrack" "br_netfilter" "vxlan" ]
    { "net.bridge.bridge-nf-call-iptables" = 1; "net.ipv4.conf.all.forwarding" = 1; }
  ])

  (test "warnings of an agent" (warnings evaluated.agent-alone) [
    "k3s: Auto deploying manifests are only installed on server nodes (role == server), they will be ignored by this node."
    "k3s: Auto deploying Helm charts are only installed on server nodes (role == server), they will be ignored by this node."
    "k3s: The following auto deploying charts are overriden by manifests of the same name: foo."
    "k3s: The following auto deploying charts are overriden by charts of the same name: foo."
    "k3s: Helm charts are only made available to the cluster on server nodes (role == server), they will be ignored by this node."
    "k3s: serverAddr or configPath (with 'server' key) should be set if role is 'agent'"
    "k3s: token, tokenFile or configPath (with 'token' or 'token-file' keys) should be set if role is 'agent'"
    "k3s: agentToken and agentTokenFile should not be set if role is 'agent'"
    "k3s: Images are only imported on nodes with an enabled agent, they will be ignored by this node."
    "k3s: --agent-token is no flag of `k3s agent`, which would not start with it."
    "k3s: --cluster-init is no flag of `k3s agent`, which would not start with it."
    "k3s: --disable-agent is no flag of `k3s agent`, which would not start with it."
  ])
  (test "assertions of an agent" (failed evaluated.agent-alone) [
    "k3s: disableAgent must be false if role is 'agent'"
    "k3s: clusterInit must be false if role is 'agent'"
  ])
  (test "warnings of charts that something overrides" (warnings evaluated.overridden) [
    "k3s: The following auto deploying charts are overriden by manifests of the same name: a."
    "k3s: The following auto deploying charts are overriden by charts of the same name: a b."
  ])
  (test "a misspelt flag" (warnings evaluated.misspelt-flag) [ "k3s: --flannel-ifcae is no flag of `k3s server`, which would not start with it." ])
  (test "wrong settings" (failed evaluated.wrong-settings) [
    "k3s: settings.datastore-endpoint holds a password, which everybody could read in the Nix store; put it into environmentFile as K3S_DATASTORE_ENDPOINT"
    "k3s: settings.docker: a container runtime of one's own is not served by this version; leave it out to run the containerd that comes along"
    "k3s: settings.flannel-backend = ipsec: this backend is not served by this version; use vxlan or host-gw, or none with a CNI plugin of yours"
    "k3s: settings.token has an option of its own, which keeps secrets out of the Nix store: tokenFile"
    "k3s: settings and configPath both stand for the configuration file; keep one of them"
  ])
  (test "settings of the other role" (failed evaluated.server-settings-of-agent) [ "k3s: settings.cluster-cidr is of servers; this node's role is 'agent'" ])
  (test "an agent's server may be a setting" (warnings evaluated.server-settings-of-agent) [ ])
  (test "a shutdown that cannot be" (failed evaluated.wrong-shutdown) [
    "k3s: gracefulNodeShutdown.shutdownGracePeriodCriticalPods is a part of shutdownGracePeriod and must not be longer"
  ])
  (isRefused "a role that there is not" { services.k3s.role = "boss"; })
  (isRefused "a setting that there is not" { services.k3s.settings.flannel-ifcae = "eth1"; })
  (isRefused "a setting that is no range" { services.k3s.settings.cluster-cidr = "10.42.0.0"; })
  (isRefused "a setting that is no address" { services.k3s.settings.node-ip = "10.42.0.256"; })
  (isRefused "a setting that is no taint" { services.k3s.settings.node-taint = "a=b"; })
  (isRefused "a setting that is no port" { services.k3s.settings.https-listen-port = 70000; })
  (isRefused "a setting that is no backend" { services.k3s.settings.flannel-backend = "vxlna"; })
  (isRefused "a switch that is a word" { services.k3s.settings.debug = "yes"; })
]
# Configurations of nixpkgs' tests: no mistake is found in them.
++ map (name: test "evaluates without complaint: ${name}" [ (failed evaluated.${name}) (warnings evaluated.${name}) ] [ [ ] [ ] ]) [
  "single-node" "multi-node-server" "multi-node-server2" "multi-node-agent" "etcd" "auto-deploy" "auto-deploy-upgrade" "image-upgrade" "configuration"
]
