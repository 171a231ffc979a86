// Package crownest is the Go client of the CrowNest API: create isolated Linux
// sandboxes, run and stream commands in them, move files and keep artifacts.
//
//	client, err := crownest.NewClient()
//	if err != nil {
//		return err
//	}
//	sandbox, err := client.Sandboxes.Create(ctx, crownest.CreateSandboxParams{Template: "python"})
//	if err != nil {
//		return err
//	}
//	defer sandbox.Kill(context.WithoutCancel(ctx))
//	result, err := sandbox.Commands.Run(ctx, "python3 main.py", &crownest.RunOptions{
//		OnStdout: func(chunk string) { fmt.Print(chunk) },
//	})
//
// Errors that the API answered with are *APIError. Mutations carry a random
// Idempotency-Key unless one is given, so that the client's own retries after a
// broken connection never do anything twice. The credential is sent to the
// scheme, host and port of the base URL and to nowhere else.
//
// The package depends on the standard library only and is safe for concurrent use.
package crownest
