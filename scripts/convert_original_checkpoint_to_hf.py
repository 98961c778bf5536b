"""Convert an original H2C bridge checkpoint to a folder in Hub layout; see `h2c_hf.hub.conversion`."""

from h2c_hf.hub.conversion import main


if __name__ == "__main__":
    main()
