package main
import "context"
func startSuite(ctx context.Context, b *bench) ([]row, error) {return nil,nil}
func hostSuite(ctx context.Context, b *bench) ([]row, error) {return nil,nil}
func targetSuite(ctx context.Context, b *bench) ([]row, error) {return nil,nil}
