# config.yaml, typed by the program's own table of flags (flags.json, which `cargo xtask nix write` makes).
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  cfg = config.services.k3s;
  flags = lib.importJSON ./flags.json;
  known = flags.server // flags.agent;
  role = flags.${cfg.role};

  # What a value has to look like, where the kind of flag does not say it.
  octet = "(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])";
  ipv4 = "${octet}(\\.${octet}){3}";
  ipv6 = "[0-9a-fA-F:]*:[0-9a-fA-F:.]*";
  matching = what: pattern: types.strMatching pattern // { description = what; };
  address = matching "IP address" "${ipv4}|${ipv6}";
  range = matching "address range, such as 10.42.0.0/16" "(${ipv4}|${ipv6})/[0-9]{1,3}";
  mode = matching "permission bits in octal, such as 0640" "0?[0-7]{3}";
  label = matching "label, as KEY=VALUE" "[^=]+=[^=]*";
  taint = matching "taint, as KEY=VALUE:EFFECT" "[^=:]+(=[^:]*)?:(NoSchedule|PreferNoSchedule|NoExecute)";
  argument = matching "argument, as NAME=VALUE" "(--)?[^=]+=.*";
  ports = matching "range of ports, as FIRST-LAST" "[0-9]{1,5}-[0-9]{1,5}";
  shapes = {
    advertise-address = address;
    advertise-port = types.port;
    bind-address = address;
    cluster-cidr = range;
    cluster-dns = address;
    egress-selector-mode = types.enum [ "agent" "cluster" "disabled" "pod" ];
    flannel-backend = types.enum [ "extension" "host-gw" "ipsec" "none" "tailscale" "udp" "vxlan" "wireguard" "wireguard-native" ];
    https-listen-port = types.port;
    lb-server-port = types.port;
    node-external-ip = address;
    node-ip = address;
    node-label = label;
    node-taint = taint;
    resource-profile = types.enum [ "auto" "small" "standard" ];
    service-cidr = range;
    service-node-port-range = ports;
    snapshot-retention = types.ints.unsigned;
    v = types.ints.unsigned;
    write-kubeconfig-mode = mode;
  };
  shape =
    name: default:
    if lib.hasSuffix "-arg" name then argument else shapes.${name} or default;

  list = element: types.coercedTo element lib.singleton (types.listOf element);
  kinds = name: {
    switch = types.bool;
    list = list (shape name types.str);
    text = shape name (types.oneOf [ types.str types.int types.path ]);
  };
  option = name: flag: mkOption {
    type = types.nullOr (kinds name).${flag.kind};
    default = null;
    description = flag.help;
  };

  given = lib.filterAttrs (_: value: value != null) cfg.settings;
  words = value: if builtins.isBool value then lib.boolToString value else toString value;

  # Options that say the same as a setting.
  options = {
    agent-token = "agentTokenFile";
    agent-token-file = "agentTokenFile";
    token = "tokenFile";
    token-file = "tokenFile";
    config = "configPath";
  };

  isRefused = flag: flag ? refusal && !flag ? refusedValues;
  refusal =
    name: value:
    let
      flag = role.${name};
      isDefault = words value == flag.default or (if flag.kind == "switch" then "false" else null);
      because = "${flag.refusal.what} is not served by this version; ${flag.refusal.instead}";
    in
    if !role ? ${name} then
      "settings.${name} is of ${if cfg.role == "agent" then "servers" else "agents"}; this node's role is '${cfg.role}'"
    else if options ? ${name} then
      "settings.${name} has an option of its own, which keeps secrets out of the Nix store: ${options.${name}}"
    else if flag.secret && builtins.match ".*@.*" (words value) != null then
      "settings.${name} holds a password, which everybody could read in the Nix store; put it into environmentFile as ${flag.variable}"
    else if isRefused flag && !isDefault then
      "settings.${name}: ${because}"
    else if builtins.elem (words value) (flag.refusedValues or [ ]) then
      "settings.${name} = ${words value}: ${because}"
    else
      null;
  refusals = lib.filter (text: text != null) (lib.mapAttrsToList refusal given);
  file = (pkgs.formats.yaml { }).generate "k3s-config.yaml" given;
in
{
  options.services.k3s = {
    settings = mkOption {
      type = types.submodule { options = lib.mapAttrs option known; };
      default = { };
      example = {
        cluster-cidr = "10.24.0.0/16";
        flannel-iface = "eth1";
        kubelet-arg = [ "max-pods=50" ];
      };
      description = ''
        The keys of {file}`/etc/rancher/k3s/config.yaml`, which are the long names of flags. Keys and values are checked
        when the configuration is evaluated.
      '';
    };
    flagTable = mkOption {
      type = types.raw;
      internal = true;
      readOnly = true;
      default = flags;
      description = "The flags of both roles, as the program has them.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = map (message: {
      assertion = false;
      message = "k3s: ${message}";
    }) refusals
    ++ [
      {
        assertion = given == { } || cfg.configPath == null;
        message = "k3s: settings and configPath both stand for the configuration file; keep one of them";
      }
    ];
    environment.etc."rancher/k3s/config.yaml" = lib.mkIf (given != { } && cfg.configPath == null) { source = file; };
    systemd.services.k3s.restartTriggers = lib.optional (given != { } && cfg.configPath == null) file;
  };
}
