# NixOS tests of services.k3s, by the names of nixpkgs' where it has such a test. Their scripts run on the machines of
# `cargo xtask vm-test` too.
{ pkgs, module }:
let
  inherit (pkgs) lib;
  files = lib.filterAttrs (name: _: lib.hasSuffix ".py" name) (builtins.readDir ./.);
  names = map (lib.removeSuffix ".py") (builtins.attrNames files);
in
lib.genAttrs names (
  name:
  pkgs.testers.runNixOSTest {
    name = "k3s-${name}";
    nodes = lib.mapAttrs (_: node: {
      imports = [
        module
        ./node.nix
        node
      ];
    }) (import (./. + "/${name}.nix"));
    testScript = builtins.readFile (./. + "/${name}.py");
  }
)
