# What the machine is in the cluster: its role, the servers it joins, its name, addresses and labels.
{ lib, pkgs, ... }:
let
  inherit (lib) mkOption types;
  words = description: mkOption {
    type = types.listOf types.str;
    default = [ ];
    inherit description;
  };
  optional = type: description: mkOption {
    type = types.nullOr type;
    default = null;
    inherit description;
  };
in
{
  options.services.k3s = {
    enable = lib.mkEnableOption "k3s";

    package = lib.mkPackageOption pkgs "k3s" { };

    role = mkOption {
      type = types.enum [
        "server"
        "agent"
      ];
      default = "server";
      description = "`server`: the control plane, and a node beside it. `agent`: a node that joins a server.";
    };

    serverAddr = mkOption {
      type = types.str;
      default = "";
      example = "https://10.0.0.10:6443";
      description = "The server to join.";
    };

    token = mkOption {
      type = types.str;
      default = "";
      description = "The secret that nodes join with. Everybody can read it in the Nix store: use `tokenFile`.";
    };

    tokenFile = optional types.path ''
      File with the secret that nodes join with. systemd hands it to the service as a credential, so that root alone has
      to be able to read it.
    '';

    agentToken = mkOption {
      type = types.str;
      default = "";
      description = ''
        The secret that agents, but not servers, join with; of servers only. Everybody can read it in the Nix store: use
        `agentTokenFile`.
      '';
    };

    agentTokenFile = optional types.path ''
      File with the secret that agents, but not servers, join with; of servers only. Handed over as `tokenFile` is.
    '';

    clusterInit = mkOption {
      type = types.bool;
      default = false;
      description = "Whether this is the first server of a cluster on embedded etcd.";
    };

    disableAgent = mkOption {
      type = types.bool;
      default = false;
      description = "Whether this server runs the control plane alone, without a node.";
    };

    disable = words ''
      Packaged add-ons to leave out: coredns, local-storage, metrics-server, runtimes, servicelb, traefik.
    '';

    nodeName = optional types.str "Name of the node; the host's name if null.";
    nodeLabel = words "Labels that the node registers with, as `KEY=VALUE`.";
    nodeTaint = words "Taints that the node registers with, as `KEY=VALUE:EFFECT`.";
    nodeIP = optional types.str "Address that the node has for others; that of the default route if null.";
    nodeExternalIP = optional types.str "Address by which the outside reaches the node.";

    selinux = mkOption {
      type = types.bool;
      default = false;
      description = "Whether containerd labels containers for SELinux.";
    };

    extraFlags = mkOption {
      type = types.either types.str (types.listOf types.str);
      default = [ ];
      example = [
        "--cluster-cidr 10.24.0.0/16"
        "--flannel-iface=eth1"
      ];
      description = ''
        Further flags, after all others. Flags that k3s does not have, or refuses, are told at evaluation; `settings`
        checks values too.
      '';
    };

    stopPods = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether a stop or restart of the service ends pods, too, and leaves no process, mount, network namespace, rule or
        cgroup of them. Otherwise they go on running, and the next start finds them.
      '';
    };

    environmentFile = optional types.path ''
      File with variables of the service's environment, in the format of systemd's `EnvironmentFile`.
    '';

    configPath = optional types.path ''
      The configuration file, instead of {file}`/etc/rancher/k3s/config.yaml`: for one that is made when the machine boots.
    '';
  };
}
