# What kubelet and kube-proxy read from files of their own, and the shutdown that kubelet delays until pods have ended.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  cfg = config.services.k3s;
  shutdown = cfg.gracefulNodeShutdown;

  file =
    name: apiVersion: kind: fields:
    if fields == { } then
      null
    else
      (pkgs.formats.json { }).generate name ({ inherit apiVersion kind; } // fields);

  # kubelet's own fields, under which the administrator's come.
  kubeletFields =
    lib.optionalAttrs shutdown.enable {
      inherit (shutdown) shutdownGracePeriod shutdownGracePeriodCriticalPods;
    }
    // cfg.extraKubeletConfig;

  # Seconds in a duration as kubelet reads it, such as 1m13s; null if it is none.
  seconds =
    text:
    let
      parts = builtins.match "([0-9]+h)?([0-9]+m)?([0-9]+s)?" text;
      number = part: if part == null then 0 else lib.toIntBase10 (lib.substring 0 (lib.stringLength part - 1) part);
      at = builtins.elemAt parts;
    in
    if text == "" || parts == null then
      null
    else
      number (at 0) * 3600 + number (at 1) * 60 + number (at 2);
  whole = seconds kubeletFields.shutdownGracePeriod;
  critical = seconds kubeletFields.shutdownGracePeriodCriticalPods;

  duration = default: description: mkOption {
    type = types.nonEmptyStr;
    inherit default description;
  };
  path = description: mkOption {
    type = types.nullOr types.path;
    internal = true;
    readOnly = true;
    inherit description;
  };
in
{
  options.services.k3s = {
    gracefulNodeShutdown = {
      enable = lib.mkEnableOption "ending pods by their priority before the machine goes down, and systemd's waiting for it";
      shutdownGracePeriod = duration "30s" "How long a shutdown waits for pods, all in all.";
      shutdownGracePeriodCriticalPods = duration "10s" "How much of it is for critical pods, which end last.";
    };

    extraKubeletConfig = mkOption {
      type = types.attrsOf types.anything;
      default = { };
      example = {
        podsPerCore = 3;
        containerLogMaxSize = "5Mi";
      };
      description = "Fields of kubelet's configuration file. They count more than what other options put into it.";
    };

    extraKubeProxyConfig = mkOption {
      type = types.attrsOf types.anything;
      default = { };
      example = {
        mode = "nftables";
        clientConnection.kubeconfig = "/var/lib/rancher/k3s/agent/kubeproxy.kubeconfig";
      };
      description = "Fields of kube-proxy's configuration file, which has to name the kubeconfig too.";
    };

    kubeletConfigFile = path "kubelet's configuration file.";
    kubeProxyConfigFile = path "kube-proxy's configuration file.";
  };

  config = lib.mkMerge [
    {
      services.k3s.kubeletConfigFile =
        file "k3s-kubelet-config" "kubelet.config.k8s.io/v1beta1" "KubeletConfiguration" kubeletFields;
      services.k3s.kubeProxyConfigFile =
        file "k3s-kube-proxy-config" "kubeproxy.config.k8s.io/v1alpha1" "KubeProxyConfiguration"
          cfg.extraKubeProxyConfig;
    }
    (lib.mkIf (cfg.enable && shutdown.enable) {
      # logind waits for its inhibitors five seconds unless told otherwise: kubelet would be cut short.
      environment.etc."systemd/logind.conf.d/50-k3s.conf".text = ''
        [Login]
        InhibitDelayMaxSec=${toString whole}
      '';
      assertions = [
        {
          assertion = whole != null && critical != null;
          message = "k3s: gracefulNodeShutdown has to be given in hours, minutes and seconds, as in 1m30s";
        }
        {
          assertion = whole == null || critical == null || critical <= whole;
          message = "k3s: gracefulNodeShutdown.shutdownGracePeriodCriticalPods is a part of shutdownGracePeriod and must not be longer";
        }
      ];
    })
  ];
}
