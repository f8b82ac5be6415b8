# k3s whole: the program, the components it supervises, and the images that a node needs, as `cargo xtask dist` lays them
# out. It is `cargo xtask dist` that lays them out here, too.
{
  lib,
  rustPlatform,
  callPackage,
  linkFarm,
  runCommand,
  protobuf,
  pkg-config,
}:
let
  components = import ./components.nix { inherit lib callPackage; };
  manifest = lib.importTOML ../Cargo.toml;
  root = ../.;
  relative = path: lib.removePrefix "${toString root}/" (toString path);
in
rustPlatform.buildRustPackage (package: {
  pname = "k3s";
  inherit (manifest.workspace.package) version;

  # What cargo and `cargo xtask dist` read: documentation, the module and its tests change without a build.
  src = lib.cleanSourceWith {
    name = "k3s-source";
    src = root;
    filter =
      path: _:
      lib.any (part: part == relative path || lib.hasPrefix "${part}/" (relative path) || lib.hasPrefix "${relative path}/" part) [
        "Cargo.toml"
        "Cargo.lock"
        ".cargo"
        "charts"
        "images"
        "manifests"
        "nix/components"
        "src"
        "tests"
      ];
  };
  cargoLock.lockFile = ../Cargo.lock;
  cargoBuildFlags = [
    "--package=k3s"
    "--package=xtask"
  ];
  # How SQLite is built into it: the same words as for a build by hand.
  env = (lib.importTOML ../.cargo/config.toml).env;

  nativeBuildInputs = [
    protobuf
    pkg-config
  ];
  # Scenarios need root and network namespaces of their own.
  doCheck = false;

  # pause has no C library, and so none of what the wrapped compiler hardens with.
  installPhase = ''
    runHook preInstall
    release=$(dirname "$(find "''${CARGO_TARGET_DIR:-target}" -path '*/release/xtask' -type f | head -n 1)")
    K3S_COMPONENTS=${package.passthru.componentFolders} NIX_HARDENING_ENABLE= \
      "$release/xtask" dist --traefik --program "$release/k3s" --output "$out"
    runHook postInstall
  '';
  # cargo and Go's linker have stripped what is to be stripped.
  dontStrip = true;

  passthru = {
    inherit components;
    componentFolders = linkFarm "k3s-components" components;
    # What a node needs is in the package: this archive, which configurations for nixpkgs' k3s name, adds nothing.
    airgap-images = runCommand "k3s-airgap-images.tar" { } ''
      cp ${package.finalPackage}/share/k3s/images/pause.tar $out
    '';
  };

  meta = {
    description = "Kubernetes for machines that nobody can reach again";
    license = lib.licenses.asl20;
    mainProgram = "k3s";
    platforms = [
      "x86_64-linux"
      "aarch64-linux"
    ];
  };
})
