# What people type. Each target is a script of scripts/ (which say more); none needs a terminal.
.DEFAULT_GOAL := help
.PHONY: help demo demo-down build image test lint bench soak sim tools

help:  ## This list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | column -t -s '|'

demo:  ## Install what is missing, build, start ConPaaS here, deploy the sample application
	@scripts/demo

demo-down:  ## Stop ConPaaS here and all it made; the state and cache folders stay
	@scripts/demo-down

build:  ## Build the program `conpaas` and print its path
	@scripts/build

image:  ## Build the machine image (or find it built) and print its path
	@scripts/install-packages demo
	@scripts/image

test:  ## Install what is missing, build, and run all tests
	@scripts/test

lint:  ## Format, clippy, licences and sources of dependencies
	@scripts/lint

bench:  ## Measure time and cost beside a peer
	@scripts/bench

soak:  ## Let processes die at chance places for long, and see that all ends well
	@scripts/soak

sim:  ## Let simulated worlds go wrong for a minute, and see that all ends well
	@scripts/sim

tools:  ## Build the tools that `make lint` uses into the cache folder
	@scripts/tools
