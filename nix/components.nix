# Every component but storage-tests, whose programs are tests.
{ lib, callPackage }:
let
  build = callPackage ./component.nix { };
  declared = lib.filterAttrs (
    name: kind: kind == "directory" && builtins.pathExists (./components + "/${name}/component.json")
  ) (builtins.readDir ./components);
  isOfTests = name: lib.any (program: program.test or false) (lib.importJSON (./components + "/${name}/component.json")).programs;
in
lib.mapAttrs (name: _: build name) (lib.filterAttrs (name: _: !isOfTests name) declared)
