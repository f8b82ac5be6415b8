# The NixOS tests as `cargo xtask vm-test` takes them: per node units, files and links, with the package at /usr and the
# image for pods from the disk of the tests.
{ lib }:
let
  pkgs = import ./nixpkgs/packages.nix {
    inherit lib;
    system = "x86_64-linux";
  };
  # Where the machines have the package.
  package = {
    type = "derivation";
    name = "k3s";
    outPath = "/usr";
  };
  tests = import ../../nix/tests {
    inherit pkgs;
    module = {
      imports = [ ../../nix/module ];
      services.k3s.package = package;
    };
  };
  plain = builtins.unsafeDiscardStringContext;
  unit = import ./unit-text.nix { inherit lib; };
  place = file: { ${plain (toString file)} = file.text; };

  node =
    config:
    let
      inherit (config.services.k3s) kubeletConfigFile manifestFolder;
      etc = lib.mapAttrs' (name: file: lib.nameValuePair "/etc/${name}" (if file.text != null then file.text else file.source.text)) config.environment.etc;
      # A folder of links is its files, at the folder's own place.
      manifests = lib.listToAttrs (
        map (entry: lib.nameValuePair "${plain (toString manifestFolder)}/${entry.name}" entry.path.text) manifestFolder.entries
      );
      rules = lib.filterAttrs (path: rule: rule ? "L+" && !lib.hasInfix "/agent/images/" path) (config.systemd.tmpfiles.settings."10-k3s");
    in
    {
      memory = config.virtualisation.memorySize;
      wants = [ "k3s.service" ];
      # Debian has its programs at /usr, too.
      units."k3s.service" = builtins.replaceStrings [ (plain (toString pkgs.coreutils)) ] [ "/usr" ] (
        unit config.systemd.services.k3s
      );
      files = etc // manifests // lib.optionalAttrs (kubeletConfigFile != null) (place kubeletConfigFile);
      links = lib.mapAttrs (_: rule: plain rule."L+".argument) rules // {
        "/var/lib/rancher/k3s/agent/images/demo.tar" = "/opt/k3s/test/images/demo.tar";
      };
    };
in
lib.mapAttrs (name: test: {
  inherit name;
  inherit (test) testScript;
  nodes = lib.mapAttrs (_: config: node (config // { virtualisation = { memorySize = 2048; } // config.virtualisation; })) test.nodes;
}) tests
