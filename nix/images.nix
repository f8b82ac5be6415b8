# The product as a container image, of what Nix built. System extensions for other systems have to be linked with those
# systems' C library: `cargo xtask packages` makes them.
{ pkgs, k3s }:
let
  declared = pkgs.lib.importJSON ../images/k3s/image.json;
  asKeys = names: pkgs.lib.genAttrs names (_: { });
in
{
  oci = pkgs.dockerTools.buildLayeredImage {
    name = declared.repository;
    tag = k3s.version;
    contents = [
      k3s
      pkgs.busybox
      pkgs.cacert
    ]
    ++ import ./host-programs.nix pkgs;
    config = {
      Entrypoint = [ "/bin/k3s" ];
      Cmd = declared.cmd;
      Env = [ "PATH=/bin:/sbin" ];
      ExposedPorts = asKeys declared.exposed_ports;
      Volumes = asKeys declared.volumes;
    };
  };
}
