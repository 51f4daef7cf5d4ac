# Every option has a type, a description and an example.
{ codchi, ... }: codchi.optionsReference.gaps
