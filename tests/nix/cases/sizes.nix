{ codchi, ... }:
map codchi.size.toBytes [
  4096
  "1"
  "2K"
  "3M"
  "4G"
  "5T"
]
