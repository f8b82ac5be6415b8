# `nix run`: k3s with the programs of the host that it starts.
{ pkgs, k3s }:
let
  inherit (pkgs) lib;
  run = verb: {
    type = "app";
    program = lib.getExe (
      pkgs.writeShellApplication {
        name = "k3s";
        runtimeInputs = import ./host-programs.nix pkgs;
        text = ''exec ${lib.getExe k3s} ${verb} "$@"'';
      }
    );
    meta.description = "k3s ${verb}";
  };
in
{
  default = run "";
  k3s = run "";
  server = run "server";
  agent = run "agent";
  kubectl = run "kubectl";
}
