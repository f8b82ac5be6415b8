# The options of NixOS that the module writes to, and no others: what it misspells is an error. Types are NixOS' own.
{ config, lib, pkgs, ... }:
let
  inherit (lib) mkOption types;
  option = type: default: mkOption { inherit type default; };
  strings = option (types.listOf types.str) [ ];
  atom = types.nullOr (types.oneOf [ types.bool types.int types.float types.str types.path types.package ]);
  directives = option (types.attrsOf (types.either atom (types.listOf atom))) { };

  service = types.submodule {
    options = {
      enable = option types.bool true;
      description = option types.singleLineStr "";
      after = strings;
      before = strings;
      wants = strings;
      requires = strings;
      wantedBy = strings;
      requiredBy = strings;
      partOf = strings;
      conflicts = strings;
      path = option (types.listOf (types.oneOf [ types.package types.str ])) [ ];
      environment = option (types.attrsOf (types.nullOr (types.oneOf [ types.str types.path types.package ]))) { };
      unitConfig = directives;
      serviceConfig = directives;
      restartTriggers = option (types.listOf types.unspecified) [ ];
      reloadTriggers = option (types.listOf types.unspecified) [ ];
      restartIfChanged = option types.bool true;
      stopIfChanged = option types.bool true;
      reload = option types.lines "";
    };
  };

  file = types.submodule (
    { name, config, ... }:
    {
      options = {
        enable = option types.bool true;
        text = option (types.nullOr types.lines) null;
        source = mkOption { type = types.path; };
        mode = option types.str "symlink";
      };
      config.source = lib.mkIf (config.text != null) (pkgs.writeText "etc-${baseNameOf name}" config.text);
    }
  );

  rule = types.submodule {
    options = {
      argument = option types.str "";
      mode = option types.str "-";
      user = option types.str "-";
      group = option types.str "-";
      age = option types.str "-";
    };
  };
in
{
  options = {
    assertions = option (types.listOf types.unspecified) [ ];
    warnings = option (types.listOf types.str) [ ];
    environment.systemPackages = option (types.listOf types.package) [ ];
    environment.etc = option (types.attrsOf file) { };
    systemd.services = option (types.attrsOf service) { };
    systemd.units = option (types.attrsOf types.unspecified) { };
    systemd.tmpfiles.settings = option (types.attrsOf (types.attrsOf (types.attrsOf rule))) { };
    boot.kernelModules = strings;
    boot.kernel.sysctl = option (types.attrsOf (types.nullOr (types.oneOf [ types.bool types.int types.str ]))) { };
    boot.zfs.enabled = option types.bool false;
    boot.zfs.package = option types.package pkgs.zfs;
    networking.hostName = option types.str "nixos";
    networking.firewall = {
      enable = option types.bool true;
      allowedTCPPorts = option (types.listOf types.port) [ ];
      allowedUDPPorts = option (types.listOf types.port) [ ];
      trustedInterfaces = strings;
    };
    system.build = option (types.attrsOf types.raw) { };
  };

  # As NixOS does: no system is built of a configuration whose assertions fail.
  config.system.build.toplevel =
    let
      failed = map (one: one.message) (lib.filter (one: !one.assertion) config.assertions);
    in
    if failed == [ ] then
      pkgs.writeText "toplevel" (builtins.toJSON (lib.mapAttrs (_: one: one.serviceConfig) config.systemd.services))
    else
      throw "Failed assertions: ${lib.concatStringsSep "; " failed}";
}
