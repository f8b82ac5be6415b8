# The units of a server and an agent as systemd reads them, by file name.
{ lib }:
let
  pkgs = import ./nixpkgs/packages.nix {
    inherit lib;
    system = "x86_64-linux";
  };
  configurations = import ./configurations.nix { inherit pkgs; };
  text = import ./unit-text.nix { inherit lib; };
  unit =
    configuration:
    text
      (lib.evalModules {
        modules = [
          ./nixpkgs/nixos.nix
          ../../nix/module
          { _module.args.pkgs = pkgs; }
          configuration
        ];
      }).config.systemd.services.k3s;
in
{
  "k3s.service" = unit configurations.every-flag;
  "k3s-agent.service" = unit configurations.multi-node-agent;
}
