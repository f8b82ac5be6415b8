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
          "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=$TMPDIR\n${script}\nexit 0"
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
        name: entries:
        shell name { } (
          "mkdir -p $out\n"
          + lib.concatMapStrings (entry: ''
            mkdir -p "$(dirname "$out/${entry.name}")"
            ln -s ${entry.path} "$out/${entry.name}"
          '') entries
        )
        // { inherit entries; };
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
