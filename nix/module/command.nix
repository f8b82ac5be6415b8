# The command line of the service: flags in the order of nixpkgs' module, so that the two can be compared.
{ config, lib, ... }:
let
  inherit (lib) optional;
  cfg = config.services.k3s;
  flag = name: value: optional (value != null && value != "") "--${name} ${toString value}";
  joined = name: value: optional (value != null) "--${name}=${value}";
  each = name: map (value: "--${name}=${value}");
  switch = name: on: optional on "--${name}";
  credential = name: file: optional (file != null) "--${name} %d/${name}";
in
{
  options.services.k3s.command = lib.mkOption {
    type = lib.types.listOf lib.types.str;
    internal = true;
    readOnly = true;
    description = "The program, its verb and its flags.";
  };

  config.services.k3s.command =
    [ "${cfg.package}/bin/k3s ${cfg.role}" ]
    ++ flag "server" cfg.serverAddr
    ++ flag "token" cfg.token
    ++ credential "token-file" cfg.tokenFile
    ++ flag "agent-token" cfg.agentToken
    ++ credential "agent-token-file" cfg.agentTokenFile
    ++ flag "config" cfg.configPath
    ++ each "disable" cfg.disable
    ++ joined "node-name" cfg.nodeName
    ++ each "node-label" cfg.nodeLabel
    ++ each "node-taint" cfg.nodeTaint
    ++ joined "node-ip" cfg.nodeIP
    ++ joined "node-external-ip" cfg.nodeExternalIP
    ++ switch "selinux" cfg.selinux
    ++ joined "kubelet-arg=config" cfg.kubeletConfigFile
    ++ joined "kube-proxy-arg=config" cfg.kubeProxyConfigFile
    ++ switch "cluster-init" cfg.clusterInit
    ++ switch "disable-agent" cfg.disableAgent
    ++ lib.toList cfg.extraFlags;
}
