# Git for everyone on the machine.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkEnableOption mkOption types;
  cfg = config.programs.git;
  sections = types.attrsOf (types.attrsOf types.anything);
in
{
  options.programs.git = {
    enable = mkEnableOption "git, a distributed version control system";
    package = lib.mkPackageOption pkgs "git" { };
    config = mkOption {
      type = types.either sections (types.listOf sections);
      default = [ ];
      example = {
        init.defaultBranch = "main";
      };
      description = "What `/etc/gitconfig` says; a list where the order of the parts matters.";
      # One list of parts, in the order they were given.
      apply = given: if lib.isList given then given else [ given ];
    };
    prompt.enable = mkEnableOption "the state of the repository in bash's prompt";
    lfs = {
      enable = mkEnableOption "git-lfs (Large File Storage)";
      package = lib.mkPackageOption pkgs "git-lfs" { };
      enablePureSSHTransfer = mkEnableOption "transfers over SSH alone";
    };
  };

  config = lib.mkMerge [
    (lib.mkIf cfg.enable {
      environment.systemPackages = [ cfg.package ];
      environment.etc.gitconfig = lib.mkIf (cfg.config != [ ]) {
        text = lib.concatMapStringsSep "\n" lib.generators.toGitINI cfg.config;
      };
    })
    (lib.mkIf (cfg.enable && cfg.lfs.enable) {
      environment.systemPackages = [ cfg.lfs.package ];
      programs.git.config.filter.lfs = {
        clean = "git-lfs clean -- %f";
        smudge = "git-lfs smudge -- %f";
        process = "git-lfs filter-process";
        required = true;
      };
    })
    (lib.mkIf (cfg.enable && cfg.prompt.enable) {
      programs.bash.promptPluginInit = ". /usr/lib/git-core/git-sh-prompt";
    })
  ];
}
