package crownest_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"

	"crownest.dev/go"
)

func Example() {
	ctx := context.Background()
	client, err := crownest.NewClient() // CROWNEST_API_KEY, CROWNEST_API_URL
	if err != nil {
		log.Fatal(err)
	}
	sandbox, err := client.Sandboxes.Create(ctx, crownest.CreateSandboxParams{Template: "python"})
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _, _ = sandbox.Kill(ctx) }()
	result, err := sandbox.Commands.Run(ctx, "python3 main.py", &crownest.RunOptions{
		Collect:  []crownest.CollectItem{{Path: "/workspace/report.html"}},
		OnStdout: func(chunk string) { fmt.Print(chunk) },
	})
	if err != nil {
		log.Print(err)
		return
	}
	fmt.Println(result.Status)
}

func ExampleCommandsService_StreamLogs() {
	ctx := context.Background()
	client, err := crownest.NewClient()
	if err != nil {
		log.Fatal(err)
	}
	for event, err := range client.Commands.StreamLogs(ctx, "cmd_01m82jzdkse3w9cby5phwvby2c", nil) {
		var apiErr *crownest.APIError
		if errors.As(err, &apiErr) && apiErr.Code == "stream_gap" {
			log.Print("the oldest output is gone")
			return
		}
		if err != nil {
			log.Print(err)
			return
		}
		if event.Type == crownest.EventLog {
			fmt.Fprint(os.Stdout, event.Data)
		}
	}
}
