package main
import "context"
func targetSuite(ctx context.Context, b *bench) ([]row, error) {return nil,nil}
