# What the rest of the machine does for the service: ports, kernel modules, kernel settings.
{ config, lib, ... }:
let
  inherit (lib) mkOption types;
  cfg = config.services.k3s;
  isServer = cfg.role == "server";
  setting = name: default: if cfg.settings.${name} or null == null then default else cfg.settings.${name};
in
{
  options.services.k3s = {
    openFirewall = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether the firewall lets in what other nodes send: the API of a server, kubelet, the overlay (VXLAN), and etcd if
        it is embedded. Packets from pods are trusted.
      '';
    };

    configureKernel = mkOption {
      type = types.bool;
      default = true;
      description = ''
        Whether the kernel modules are loaded, and forwarding is switched on, when the machine boots. k3s does both itself
        when it starts, unless the kernel is locked by then.
      '';
    };
  };

  config = lib.mkIf cfg.enable {
    networking.firewall = lib.mkIf cfg.openFirewall {
      allowedTCPPorts =
        lib.optional isServer (lib.toInt (toString (setting "https-listen-port" 6443)))
        ++ [ 10250 ]
        ++ lib.optionals (isServer && cfg.clusterInit) [
          2379
          2380
        ];
      allowedUDPPorts = [ 8472 ];
      trustedInterfaces = [
        "cni0"
        "flannel.1"
      ];
    };

    boot = lib.mkIf cfg.configureKernel {
      kernelModules = [
        "overlay"
        "nf_conntrack"
        "br_netfilter"
        "vxlan"
      ];
      kernel.sysctl = {
        "net.ipv4.conf.all.forwarding" = lib.mkDefault 1;
        "net.bridge.bridge-nf-call-iptables" = lib.mkDefault 1;
      }
      # What kubelet insists on where it may not set it itself.
      // lib.optionalAttrs (setting "protect-kernel-defaults" false) {
        "vm.overcommit_memory" = lib.mkDefault 1;
        "vm.panic_on_oom" = lib.mkDefault 0;
        "kernel.panic" = lib.mkDefault 10;
        "kernel.panic_on_oops" = lib.mkDefault 1;
        "kernel.keys.root_maxkeys" = lib.mkDefault 1000000;
        "kernel.keys.root_maxbytes" = lib.mkDefault 25000000;
      };
    };
  };
}
