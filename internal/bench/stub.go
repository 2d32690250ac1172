package main
import "context"
func hostSuite(ctx context.Context, b *bench) ([]row, error) {return nil,nil}
func targetSuite(ctx context.Context, b *bench) ([]row, error) {return nil,nil}
