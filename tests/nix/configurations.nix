# How services.k3s is used: by nixpkgs' own tests, and by those of other options and mistakes.
{ pkgs }:
let
  lean = [ "coredns" "local-storage" "metrics-server" "servicelb" "traefik" ];
  image = name: pkgs.writeText name "";
  hello = {
    apiVersion = "v1";
    kind = "Namespace";
    metadata.name = "foo";
  };
in
{
  # nixpkgs: nixos/tests/rancher, by their names.
  single-node.services.k3s = {
    enable = true;
    role = "server";
    images = [ (image "test.local-pause-local.tar") ];
    disable = lean;
    extraFlags = [ "--pause-image test.local/pause:local" ];
  };
  stopping.services.k3s = {
    enable = true;
    stopPods = true;
  };
  multi-node-server.services.k3s = {
    enable = true;
    role = "server";
    clusterInit = true;
    tokenFile = "/etc/k3s-token";
    nodeIP = "192.168.1.2";
    disable = lean;
    images = [ (image "pause.tar") ];
    extraFlags = [ "--pause-image test.local/pause:local" "--flannel-iface eth1" ];
  };
  multi-node-server2.services.k3s = {
    enable = true;
    serverAddr = "https://192.168.1.2:6443";
    tokenFile = "/etc/k3s-token";
    clusterInit = false;
    nodeIP = "192.168.1.3";
    disable = lean;
    extraFlags = [ "--flannel-iface eth1" ];
  };
  multi-node-agent.services.k3s = {
    enable = true;
    role = "agent";
    tokenFile = "/etc/k3s-token";
    serverAddr = "https://192.168.1.3:6443";
    nodeIP = "192.168.1.1";
    extraFlags = [ "--pause-image test.local/pause:local" "--flannel-iface eth1" ];
  };
  etcd.services.k3s = {
    enable = true;
    extraFlags = toString [ "--datastore-endpoint=\"http://192.168.1.1:2379\"" ];
    disable = lean;
  };
  auto-deploy.services.k3s = {
    enable = true;
    images = [ (image "test.tar.zst") pkgs.k3s.airgap-images ];
    manifests = {
      absent = {
        enable = false;
        content = hello;
      };
      present = {
        target = "foo-namespace.yaml";
        content = hello;
      };
      jobs.content = [ hello hello ];
    };
    autoDeployCharts = {
      absent-chart = {
        enable = false;
        package = image "chart.tgz";
      };
      hello = {
        package = image "hello-chart.tgz";
        values = {
          runCommand = "hello";
          image.repository = "test.local/test";
        };
        extraDeploy = [ hello ];
        extraFieldDefinitions.spec.timeout = "69s";
      };
    };
    charts.other = image "other-chart.tgz";
  };
  auto-deploy-upgrade.services.k3s = {
    enable = true;
    autoDeployCharts.app = {
      package = image "app-1.tgz";
      targetNamespace = "apps";
      createNamespace = true;
    };
  };
  image-upgrade.services.k3s = {
    enable = true;
    images = [ (image "app-1.tar") ];
  };
  configuration.services.k3s = {
    enable = true;
    nodeName = "test";
    disable = lean;
    containerdConfigTemplate = "# MAGIC COMMENT\n{{ template \"base\" . }}\n";
    gracefulNodeShutdown = {
      enable = true;
      shutdownGracePeriod = "1m13s";
      shutdownGracePeriodCriticalPods = "13s";
    };
    extraKubeletConfig = {
      podsPerCore = 3;
      memoryThrottlingFactor = 0.69;
      containerLogMaxSize = "5Mi";
    };
  };

  # What only this module has.
  nothing = { };
  plain.services.k3s.enable = true;
  settings.services.k3s = {
    enable = true;
    openFirewall = true;
    settings = {
      cluster-cidr = "10.24.0.0/16";
      https-listen-port = 7443;
      kubelet-arg = [ "max-pods=50" "v=2" ];
      write-kubeconfig-mode = "0640";
      embedded-registry = false;
    };
    datastore.endpoint = "https://10.0.0.1:2379";
    snapshots.schedule = "0 */12 * * *";
  };
  every-flag.services.k3s = {
    enable = true;
    serverAddr = "https://a:6443";
    token = "t";
    tokenFile = "/run/token";
    agentToken = "a";
    agentTokenFile = "/run/agent-token";
    configPath = "/run/config.yaml";
    disable = [ "traefik" "coredns" ];
    nodeName = "n";
    nodeLabel = [ "a=b" "c=d" ];
    nodeTaint = [ "a=b:NoSchedule" ];
    nodeIP = "10.0.0.1";
    nodeExternalIP = "1.2.3.4";
    selinux = true;
    extraKubeletConfig.maxPods = 9;
    extraKubeProxyConfig.mode = "nftables";
    clusterInit = true;
    disableAgent = true;
    environmentFile = "/run/environment";
    extraFlags = [ "--debug" "--cluster-cidr 10.24.0.0/16" ];
  };
  zfs = {
    boot.zfs.enabled = true;
    services.k3s.enable = true;
  };

  # Mistakes that evaluate, with a word.
  agent-alone.services.k3s = {
    enable = true;
    role = "agent";
    disableAgent = true;
    clusterInit = true;
    agentToken = "x";
    images = [ (image "x.tar") ];
    manifests.foo.content = hello;
    charts.foo = image "x.tgz";
    autoDeployCharts.foo.package = image "x.tgz";
  };
  overridden.services.k3s = {
    enable = true;
    manifests.a.content = hello;
    charts = { a = image "a.tgz"; b = image "b.tgz"; };
    autoDeployCharts = { a.package = image "a.tgz"; b.package = image "b.tgz"; };
  };
  misspelt-flag.services.k3s = {
    enable = true;
    extraFlags = "--flannel-ifcae=eth1 --debug";
  };
  wrong-settings.services.k3s = {
    enable = true;
    configPath = "/run/config.yaml";
    settings = {
      docker = true;
      lb-server-port = 6445;
      token = "secret";
      flannel-backend = "ipsec";
      datastore-endpoint = "postgres://user:password@host/db";
    };
  };
  server-settings-of-agent.services.k3s = {
    enable = true;
    role = "agent";
    tokenFile = "/run/token";
    settings = {
      server = "https://10.0.0.1:6443";
      cluster-cidr = "10.24.0.0/16";
    };
  };
  wrong-shutdown.services.k3s = {
    enable = true;
    gracefulNodeShutdown = {
      enable = true;
      shutdownGracePeriod = "10s";
      shutdownGracePeriodCriticalPods = "20s";
    };
  };
}
