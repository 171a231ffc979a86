module crownest.dev/go

go 1.24
