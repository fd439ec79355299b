#!/bin/sh
# curl against a running `r1ranker serve`: sh examples/rerank.sh [URL [KEY]]
curl --silent --show-error --fail "${1:-http://127.0.0.1:8100}/rerank" \
  --header 'Content-Type: application/json' ${2:+--header "Authorization: Bearer $2"} \
  --data '{"query": "how long do barn owls live", "top_n": 2, "return_documents": true,
           "documents": ["A tractor needs oil.", "A barn owl lives about four years.", "Owls eat mice."]}'
