{ codchi, ... }: codchi.size.toBytes "4 GB"
