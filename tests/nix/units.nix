# The units of a server and an agent as systemd reads them, by file name.
{ lib }:
let
  pkgs = import ./nixpkgs/packages.nix { inherit lib; system = "x86_64-linux"; };
  configurations = import ./configurations.nix { inherit pkgs; };
  unit =
    configuration:
    (lib.evalModules {
      modules = [
        ./nixpkgs/nixos.nix
        ../../nix/module
        { _module.args.pkgs = pkgs; }
        configuration
      ];
    }).config.systemd.services.k3s;
  value = one: if builtins.isBool one then lib.boolToString one else toString one;
  line = key: one: lib.concatMapStrings (one: "${key}=${value one}\n") (lib.toList one);
  section = name: keys: "[${name}]\n${lib.concatStrings (lib.mapAttrsToList line keys)}\n";
  text =
    one:
    section "Unit" (
      {
        Description = one.description;
        After = toString one.after;
        Wants = toString one.wants;
      }
      // one.unitConfig
    )
    + section "Service" one.serviceConfig
    + section "Install" { WantedBy = toString one.wantedBy; };
in
lib.mapAttrs' (name: configuration: {
  name = "${name}.service";
  value = builtins.unsafeDiscardStringContext (text (unit configuration));
}) {
  k3s = configurations.every-flag;
  k3s-agent = configurations.multi-node-agent;
}
