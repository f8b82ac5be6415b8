# An upstream program, or a family of them in one, from the pinned Go module that `cargo xtask components` builds: the same
# files, the same flags and, where no C is linked, the same bytes.
{
  lib,
  buildGoModule,
  buildGo126Module ? buildGoModule,
  glibc,
  libseccomp,
  pkg-config,
}:
name:
let
  folder = ./components + "/${name}";
  declaration = lib.importJSON (folder + "/component.json");
  # What go.mod requires of the component's module.
  version = lib.head (
    lib.concatLists (
      lib.filter builtins.isList (
        builtins.split "[[:space:]]${lib.escapeRegex declaration.module} (v[^[:space:]]+)" (
          builtins.readFile (folder + "/go.mod")
        )
      )
    )
  );
  numbers = lib.splitString "." (lib.removePrefix "v" version);

  cgo = declaration.cgo or null;
  ldflags = lib.concatStringsSep " " ([ "-s -w -buildid=" ] ++ declaration.ldflags or [ ]);
  build = program: ''
    go build -trimpath -buildvcs=false -mod=readonly \
      -tags ${lib.escapeShellArg (lib.concatStringsSep "," (declaration.tags or [ ] ++ program.tags or [ ]))} \
      -ldflags ${
        lib.escapeShellArg (
          lib.replaceStrings
            [ "{version}" "{major}" "{minor}" ]
            [ version (lib.elemAt numbers 0) (lib.elemAt numbers 1) ]
            ldflags
        )
      } \
      -o "$out/${program.name}" ${program.package}
    ${lib.concatMapStrings (link: ''
      ln -s ${program.name} "$out/${link}"
    '') (program.links or [ ])}
  '';

  # Sets the variable of that name to where Go keeps the module of a package.
  setModuleFolder = package: ''
    moduleFolder=$(go list -find -f '{{.Module.Dir}}' ${package})
    test -n "$moduleFolder"
  '';
  # A copy of a module is built in which files are ours.
  swap = module: files: ''
    ${setModuleFolder "${module}/${dirOf (lib.head (lib.attrNames files))}"}
    mkdir -p swapped/${module}
    cp -r "$moduleFolder"/. swapped/${module}
    chmod -R u+w swapped/${module}
    ${lib.concatStrings (
      lib.mapAttrsToList (theirs: ours: ''
        cp ${ours} swapped/${module}/${theirs}
      '') files
    )}
    go mod edit -replace ${module}=./swapped/${module}
  '';
  # A file of the module that lies beside the programs.
  copy = file: path: ''
    ${setModuleFolder (lib.head declaration.programs).package}
    cat "$moduleFolder"/${path} > "$out/${file}"
  '';
in
buildGo126Module {
  pname = "k3s-${name}";
  version = lib.removePrefix "v" version;
  src = lib.sourceFilesBySuffices folder [
    ".go"
    ".mod"
    ".sum"
  ];

  # Modules as their proxy has them, so that the program's build information names their checksums. Times and listings
  # that a proxy adds are left out.
  proxyVendor = true;
  vendorHash = (lib.importJSON ./components/vendor-hashes.json).${name}.hash;
  overrideModAttrs = _: {
    preInstall = ''
      find "$GOPATH/pkg/mod/cache/download" -type f ! -name '*.mod' ! -name '*.zip' -delete
      find "$GOPATH/pkg/mod/cache/download" -type d -empty -delete
    '';
  };

  env = {
    CGO_ENABLED = if cgo == null then "0" else "1";
    GOAMD64 = "v1";
    GOARM64 = "v8.0";
  }
  // lib.optionalAttrs (cgo.cflags or [ ] != [ ]) { CGO_CFLAGS = toString cgo.cflags; };
  nativeBuildInputs = lib.optional (cgo.libraries or [ ] != [ ]) pkg-config;
  # Linked statically: its container has none of the host's libraries.
  buildInputs = lib.optionals (cgo.libraries or [ ] != [ ]) [
    (libseccomp.overrideAttrs { dontDisableStatic = true; })
    glibc.static
  ];

  buildPhase = ''
    runHook preBuild
    mkdir -p "$out"
    ${lib.optionalString (declaration ? generated) "go generate ."}
    ${lib.concatStrings (lib.mapAttrsToList swap (declaration.swapped or { }))}
    ${lib.concatMapStrings build declaration.programs}
    ${lib.concatStrings (lib.mapAttrsToList copy (declaration.files or { }))}
    runHook postBuild
  '';
  installPhase = "runHook preInstall; runHook postInstall";
  doCheck = false;
  # The linker has stripped them, and strip would change them once more.
  dontStrip = true;
  dontPatchELF = true;

  passthru = {
    inherit declaration;
  };
  meta = {
    description = "${name} as k3s runs it";
    platforms = lib.platforms.linux;
  };
}
