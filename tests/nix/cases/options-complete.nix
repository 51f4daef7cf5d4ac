# Every option has a type, a description and an example.
{ codchi, machine, ... }:
codchi.optionsReference.gaps (machine [ ]).options
