# The nodes of a NixOS test, evaluated with our module and the stand-in for NixOS. What only a test's machine has
# (virtualisation, journald) is free of form.
{ lib, pkgs }:
test:
let
  names = builtins.attrNames test.nodes;
  number = name: 1 + lib.lists.findFirstIndex (other: other == name) 0 names;
  free = lib.mkOption {
    type = lib.types.attrsOf lib.types.anything;
    default = { };
  };
  evaluated = lib.mapAttrs (
    name: node:
    (lib.evalModules {
      modules = [
        ./nixos.nix
        node
        {
          options = {
            virtualisation = free;
            services.journald = free;
            networking.primaryIPAddress = lib.mkOption {
              type = lib.types.str;
              default = "192.168.1.${toString (number name)}";
            };
          };
          config = {
            _module.args = {
              inherit pkgs name;
              nodes = evaluated;
            };
            networking.hostName = lib.mkDefault name;
          };
        }
      ];
    }).config
  ) test.nodes;
in
# As a test does: nothing runs on a node whose assertions fail.
pkgs.writeText test.name (builtins.toJSON {
  inherit (test) name testScript;
  nodes = lib.mapAttrs (_: config: builtins.unsafeDiscardStringContext config.system.build.toplevel.drvPath) evaluated;
})
// {
  inherit (test) testScript;
  nodes = evaluated;
}
