# The packages and builders that the flake and the module name. What is built is built by the host's own programs.
{ lib, system }:
let
  # The script ends with a builtin: bash would replace itself by a last program, whose end nix can take for a crash.
  shell =
    name: environment: script:
    derivation (
      {
        inherit name system;
        builder = "/bin/bash";
        args = [
          "-euc"
          "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:${builtins.getEnv "STAND_IN_PATH"} HOME=$TMPDIR\n${script}\nexit 0"
        ];
      }
      // environment
    )
    // {
      meta = { };
      overrideAttrs = change: shell name (environment // change environment) script;
    };

  # A package that is only named: its paths are in units and command lines, nothing of it runs.
  named = name: shell name { } "mkdir -p $out/bin" // { pname = name; version = "0"; meta.mainProgram = name; };
  data = name: text: shell name { inherit text; passAsFile = [ "text" ]; } ''cp "$textPath" "$out"'';
  format = {
    type = lib.types.attrsOf lib.types.anything;
    generate = name: value: data name (builtins.toJSON value);
  };

  # What the host has cached; empty where an evaluation is pure, as a builder's is not.
  host = name: builtins.getEnv name;

  # Phases as nixpkgs runs them, as far as ours use them.
  phases =
    arguments: default:
    ''
      runHook() { eval "''${!1:-}"; }
      cp -r "$src" source
      chmod -R u+w source
      cd source
      ${arguments.buildPhase or default}
      ${arguments.installPhase}
    '';

  buildGoModule =
    arguments:
    let
      modules =
        shell "${arguments.pname}-modules"
          {
            inherit (arguments) src;
            inherit (arguments.overrideModAttrs { }) preInstall;
            outputHashMode = "recursive";
            outputHashAlgo = "sha256";
            outputHash = arguments.vendorHash;
            impureEnvVars = [ "GOPROXY" ];
          }
          (
            phases {
              buildPhase = ''
                export GOPATH=$TMPDIR/go GOFLAGS=-modcacherw GOSUMDB=off GOTOOLCHAIN=local
                go mod download
              '';
              installPhase = ''
                runHook preInstall
                rm -rf "$GOPATH/pkg/mod/cache/download/sumdb"
                cp -r "$GOPATH/pkg/mod/cache/download" "$out"
              '';
            } ""
          );
    in
    shell arguments.pname (
      {
        inherit (arguments) src;
        GOCACHE = host "STAND_IN_GOCACHE";
        GOTOOLCHAIN = "local";
        GOSUMDB = "off";
        GOFLAGS = "-modcacherw";
        GOPROXY = "file://${modules}";
      }
      // arguments.env
    ) (phases arguments "")
    // {
      inherit (arguments) pname version passthru;
      inherit modules;
    };

  buildRustPackage =
    describe:
    let
      arguments = describe (arguments // { finalPackage = package; });
      package =
        shell "${arguments.pname}-${arguments.version}" (
          {
            inherit (arguments) src;
            CARGO_HOME = host "STAND_IN_CARGO_HOME";
            CARGO_TARGET_DIR = host "STAND_IN_CARGO_TARGET_DIR";
            RUSTUP_HOME = host "STAND_IN_RUSTUP_HOME";
            RUSTUP_TOOLCHAIN = host "RUSTUP_TOOLCHAIN";
          }
          // arguments.env
        ) (
          phases arguments ''
            cargo build --release --frozen --offline ${toString arguments.cargoBuildFlags}
          ''
        )
        // arguments.passthru
        // {
          inherit (arguments) pname version meta passthru;
        };
    in
    package;

  self =
    lib.genAttrs [
      "bash" "busybox" "cacert" "clippy" "conntrack-tools" "cri-tools" "curl" "etcd" "ethtool" "go_1_26" "iproute2" "ipset"
      "iptables" "jq" "kmod" "kubectl" "kubernetes-helm" "nftables" "nixfmt" "pkg-config" "protobuf" "rustfmt" "socat" "tini"
      "util-linux" "yq-go" "zfs" "zstd" "cargo" "rustc" "libseccomp" "coreutils" "systemd"
    ] named
    // {
      inherit lib;
      stdenv = {
        hostPlatform = lib.systems.elaborate system;
        cc = named "cc";
      };
      runCommand = name: environment: shell name (removeAttrs environment [ "nativeBuildInputs" ]);
      writeText = data;
      writeTextFile = { name, text, ... }: data name text;
      linkFarm =
        name: given:
        let
          entries = if builtins.isList given then given else lib.mapAttrsToList (name: path: { inherit name path; }) given;
        in
        shell name { } (
          "mkdir -p $out\n"
          + lib.concatMapStrings (entry: ''
            mkdir -p "$(dirname "$out/${entry.name}")"
            ln -s ${entry.path} "$out/${entry.name}"
          '') entries
        )
        // { inherit entries; };
      callPackage = lib.callPackageWith self;
      inherit buildGoModule;
      buildGo126Module = buildGoModule;
      rustPlatform = { inherit buildRustPackage; };
      mkShell = arguments: data "shell" (builtins.toJSON (map (one: one.name) (arguments.packages ++ arguments.buildInputs)));
      writeShellApplication =
        { name, text, ... }:
        shell name { inherit text; passAsFile = [ "text" ]; } ''
          mkdir -p $out/bin
          { echo '#!/bin/bash'; cat "$textPath"; } > $out/bin/${name}
          chmod +x $out/bin/${name}
        ''
        // { meta.mainProgram = name; };
      buildEnv = { name, ... }: named name;
      dockerTools.buildImage = { name, tag, ... }: data "docker-image-${baseNameOf name}.tar" tag;
      dockerTools.buildLayeredImage = { name, config, ... }: data "${baseNameOf name}.tar.gz" (builtins.toJSON config);
      pkgsStatic.busybox = named "busybox";
      testers.runNixOSTest = import ./test-driver.nix { inherit lib; pkgs = self; };
      libseccomp = named "libseccomp";
      glibc.static = named "glibc-static";
      formats = {
        json = _: format;
        yaml = _: format;
        yaml_1_2 = _: format;
        toml = _: format;
      };
      k3s = named "k3s" // { airgap-images = data "k3s-airgap-images.tar" ""; };
    };
in
self
