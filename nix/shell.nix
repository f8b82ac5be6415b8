# `nix develop`: what `cargo xtask` needs.
{ pkgs }:
pkgs.mkShell {
  packages = [
    pkgs.cargo
    pkgs.clippy
    pkgs.go_1_26
    pkgs.nixfmt
    pkgs.pkg-config
    pkgs.protobuf
    pkgs.rustc
    pkgs.rustfmt
  ]
  ++ import ./host-programs.nix pkgs;
  buildInputs = [ pkgs.libseccomp ];
}
