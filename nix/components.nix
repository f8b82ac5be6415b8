# Every component that is built from its module as it is; storage-tests, of which a file is exchanged, is for tests alone.
{ lib, callPackage }:
let
  build = callPackage ./component.nix { };
  declared = lib.filterAttrs (
    name: kind: kind == "directory" && builtins.pathExists (./components + "/${name}/component.json")
  ) (builtins.readDir ./components);
  plain = lib.filterAttrs (name: _: !(lib.importJSON (./components + "/${name}/component.json")) ? swapped) declared;
in
lib.mapAttrs (name: _: build name) plain
